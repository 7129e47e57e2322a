"""fedsam_train_federated: runs federations, keeps their checkpoints and progress, writes the trained model."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.evaluation.metrics import RULE
from fedsam_pipeline.evaluation.summary import SiteDice, combine_sites
from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.downlink import Downlink
from fedsam_pipeline.files import locked_folder, make_folder, read_json, write_json
from fedsam_pipeline.flower.aggregator import Aggregator
from fedsam_pipeline.flower.named_grid import NamedGrid
from fedsam_pipeline.flower.private_rounds import LEDGER_FILE, PrivateRounds, spent_before
from fedsam_pipeline.flower.replies import SiteFailed
from fedsam_pipeline.flower.round_loop import RoundLoop
from fedsam_pipeline.flower.rounds import FinalScores, RoundPlan, RoundRecord
from fedsam_pipeline.flower.simulation import Grid, simulate
from fedsam_pipeline.flower.site_worker import SiteSetup, SiteWorker
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.model.trained_files import ADAPTER_FILE, BUNDLE_FILE, write_adapter, write_documents
from fedsam_pipeline.pipeline.choose_postprocessing import choose_postprocessing
from fedsam_pipeline.pipeline.coverage_file import write_coverage
from fedsam_pipeline.pipeline.environment import hardware, versions
from fedsam_pipeline.pipeline.interpolation import interpolated, require_shared
from fedsam_pipeline.pipeline.peak_memory import own_peak_bytes, worker_peak_bytes
from fedsam_pipeline.pipeline.progress_picture import ProgressPicture
from fedsam_pipeline.pipeline.run_records import PROGRESS_FILE, TRAFFIC_FILE, RunRecords
from fedsam_pipeline.pipeline.run_timing import run_timing
from fedsam_pipeline.pipeline.simulated_keys import clear_simulated_keys, make_simulated_keys
from fedsam_pipeline.pipeline.site_folders import clear_site
from fedsam_pipeline.pipeline.train_request import RunSetup, TrainRequest
from fedsam_pipeline.specs.bundle_index import POSTPROCESSING_FILE
from fedsam_pipeline.specs.canonical import sha256_of
from fedsam_pipeline.specs.manifest import Manifest

log = logging.getLogger(__name__)
BUSY = "another process trains in this folder"
Connect = Callable[[Callable[[Grid, threading.Event], None]], None]
USERS_CODES = {
    "training_diverged": "--overwrite with a lower --lr, or with less noise (a larger --dp_epsilon, a smaller --dp_clip)",
    "bad_input": "mend what that log names, then --c",
    "encryption_key_missing": "train without --encrypt, or give every site the common key: fedsam_site_kit encrypt FOLDER, there",
    "encryption_required": "train with --encrypt: this site's updates leave it in no other way",
    "sum_refused": "put the same key at every site, then --c; if they have it, one of them sends what is no update",
    "state_missing": "--overwrite to start over: this site's folder no longer fits the server's checkpoints",
}
"""What a user can do about a site's failure, by its code; any other is internal"""
_OLDER = {"configuration": "main", "encrypt": False, "interpolate": 1.0}
"""of runs of older versions, which knew no other"""


def train_all(setups: Sequence[RunSetup], request: TrainRequest, *, started: float | None = None) -> list[dict[str, Any]]:
    """Runs federations one after the other and returns the ``run.json`` of each. All are checked before the first begins.

    Args:
        setups: one a run.
        request: the flags.
        started: when the command was, by ``time.perf_counter``: the first run's start-up counts from there; ``None``: now.

    Raises:
        FedsamError: a folder already holds a run and neither ``--c`` nor ``--overwrite`` says what to do, another process trains there, a
            recipe does not fit, or a site cannot go on for a reason that the user can mend.
        SiteFailed: a site did not give a usable answer, for a reason that is not the user's.
    """
    runs = [TrainingRun(setup, request) for setup in setups]
    return [finished(run, request, started if number == 0 else None) for number, run in enumerate(runs)]


def finished(run: "TrainingRun", request: TrainRequest, started: float | None) -> dict[str, Any]:
    if run.finished and request.resume:
        log.info("already finished: %s", run.folder)
        return run.state
    print(f"run {run}", flush=True)
    make_folder(run.folder)
    with log_file(run.folder / "logs", "train"), locked_folder(run.folder, BUSY, fix="wait for it, or stop it, then --c"):
        try:
            return run.execute(started)
        except SiteFailed as error:
            if error.code not in USERS_CODES:
                raise
            raise FedsamError(
                "a site cannot go on", path=run.folder, found=str(error), expected="every site to answer", fix=USERS_CODES[error.code]
            ) from error


def refuse_existing(folder: Path, request: TrainRequest) -> None:
    """Refuses a folder with a run in it that the request neither continues nor overwrites."""
    path = folder / "run.json"
    if path.exists() and not request.resume and not request.overwrite:
        raise FedsamError(
            "this run exists already",
            path=folder,
            found=f"status {read_json(path).get('status')}",
            fix="--c to continue it, --overwrite to start over, or another --seed",
        )


class TrainingRun:
    """One run on disk: ``run.json``, ``progress.jsonl``, ``communication.json``, checkpoints, the trained model."""

    def __init__(self, setup: RunSetup, request: TrainRequest, connect: Connect | None = None) -> None:
        """``connect`` runs the server's part against the sites; ``None``: they are simulated on this machine."""
        self._setup, self._folder, self._request = setup, setup.folder, request
        self._connect = connect or (lambda serve: simulate(setup.sites, serve, workers=setup.workers))
        self._checkpoints = CheckpointSeries(setup.folder / "checkpoints", "round_")
        self._records = RunRecords(setup.folder)
        self._names = tuple(setup.labels.scored)
        earlier = self._earlier()
        self._continues = earlier is not None
        self.state = earlier or self._new_state()

    def __str__(self) -> str:
        schedule = self._setup.schedule
        return f"{self._folder}: {len(self._setup.site_names)} site(s), {schedule.rounds} rounds of {schedule.local_steps} steps"

    @property
    def folder(self) -> Path:
        """The ``fold_K`` folder."""
        return self._folder

    @property
    def finished(self) -> bool:
        """Whether the trained model is complete."""
        return bool(self.state["status"] == "done") and (self._folder / BUNDLE_FILE).is_file()

    def _earlier(self) -> dict[str, Any] | None:
        """The state of an earlier run that this one continues; ``None`` where it starts afresh."""
        path = self._folder / "run.json"
        if self._request.resume and path.exists() and not self._request.overwrite:
            return self._compatible(path)
        refuse_existing(self._folder, self._request)
        return None

    def _compatible(self, path: Path) -> dict[str, Any]:
        """An earlier state, if it is of the same run: everything that decides the numbers must agree."""
        state: dict[str, Any] = _OLDER | read_json(path)
        expected = self._identity()
        different = [key for key, value in expected.items() if state.get(key) != value]
        if different:
            raise FedsamError(
                "the run cannot be continued with other settings",
                path=path,
                found="; ".join(f"{key} {state.get(key)}" for key in different),
                expected="; ".join(f"{key} {expected[key]}" for key in different),
                fix="repeat the first command's flags and add --c, or use --overwrite to start over",
            )
        return state

    def _clear(self) -> None:
        """Removes what an earlier run left, the trained model first."""
        if (spent := spent_before(self._folder)) is not None:
            log.warning("the run before spent epsilon %.4g on these sites; it is forgotten here, and counts all the same", spent)
        for name in (
            BUNDLE_FILE,
            ADAPTER_FILE,
            PROGRESS_FILE,
            TRAFFIC_FILE,
            "run.json",
            "progress.png",
            "validation/summary.json",
            LEDGER_FILE,
        ):
            (self._folder / name).unlink(missing_ok=True)
        for site in self._setup.all_sites:
            clear_site(site.state_folder)
        clear_simulated_keys(self._setup.sites)
        self._checkpoints.clear()

    def _identity(self) -> dict[str, Any]:
        setup = self._setup
        return {
            "protocol": setup.protocol,
            "sites": list(setup.site_names),
            "held_out": None if setup.held_out is None else setup.held_out.site,
            "cases_sha256": sha256_of([_cases_of(site) for site in setup.all_sites]),
            **setup.model.agreement(),
            "wire": setup.model.recipe.aggregation.wire,
            "privacy": None if setup.privacy is None else setup.privacy.to_dict(),
            "encrypt": setup.encrypt,
            "interpolate": setup.interpolate,
            **asdict(setup.schedule),
        }

    def _new_state(self) -> dict[str, Any]:
        setup, request = self._setup, self._request
        return {
            "schema_version": 1,
            "status": "running",
            "run_id": secrets.token_hex(8),
            "dataset": setup.model.plans.dataset_name,
            "recipe": setup.model.recipe.name,
            "plans_name": setup.model.plans.plans_name,
            "base_model": setup.model.plans.base_model,
            "strategy": setup.model.recipe.aggregation.strategy,
            "fold": request.fold,
            **self._identity(),
            "arguments": asdict(request) | {"init": None if request.init is None else str(request.init)},
            "versions": versions(),
            "hardware": hardware(request.device),
            "workers": setup.workers,
            "seconds": 0.0,
            "peak_memory_bytes": None,
            "server_peak_memory_bytes": None,
            "timing": None,
            "privacy_spent": None,
        }

    def execute(self, command_started: float | None = None) -> dict[str, Any]:
        """Trains from the last checkpoint, or from round 0.

        Args:
            command_started: where start-up counts from, by ``time.perf_counter``; ``None``: now.
        """
        setup = self._setup
        started = time.perf_counter()
        earlier = float(self.state["seconds"])
        manifest = self._build_manifest()  # before anything is cleared: a recipe that does not fit must cost nothing
        Aggregator(setup.model.recipe.aggregation, setup.quorum)  # nor a strategy that makes no sense with so few sites
        if not self._continues:
            self._clear()
        make_simulated_keys(setup.sites)
        write_documents(self._folder, setup.model.plans, setup.model.recipe, manifest)
        write_json(self._folder / "dataset.json", dict(setup.dataset))
        write_coverage(self._folder, setup.coverage)
        self._save_state(status="running")
        try:
            with ProgressPicture(self._folder / "progress.png") as self._picture:
                self._connect(self._serve)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            self._save_state(status="interrupted" if interrupted else "failed", seconds=earlier + time.perf_counter() - started)
            raise
        ended = time.perf_counter()
        timing = run_timing(
            self._clock, started=command_started or started, ended=ended, workers=setup.workers, first_round=self._first_round
        )
        self._save_state(status="done", seconds=earlier + ended - started, timing=timing)
        return self.state

    def _build_manifest(self) -> Manifest:
        setup = self._setup
        adapted = setup.model.build()
        travelling = {entry.name for entry in adapted.manifest.federated}
        self._initial = adapted.trained_tensors()
        self._travelling = {name: tensor for name, tensor in self._initial.items() if name in travelling}
        self._manifest = adapted.manifest
        require_shared(adapted.manifest, setup.interpolate)
        return adapted.manifest

    def _serve(self, grid: Grid, stop: threading.Event) -> None:
        setup = self._setup
        rounds_done, tensors = 0, self._travelling
        aggregator = Aggregator(setup.model.recipe.aggregation, setup.quorum, private := self._private_rounds())
        downlink = Downlink(setup.model.recipe.aggregation.wire, tensors)
        if (known := self._checkpoints.latest()) is not None:
            rounds_done, kept = known
            downlink, rest = Downlink.restored(setup.model.recipe.aggregation.wire, kept)
            tensors = aggregator.restore(rest)
            log.info("continuing after round %d", rounds_done)
        if private is not None:
            private.require_ledger(rounds_done)
            self.state["privacy_spent"] = private.spent
        self._records.forget_after(rounds_done)
        self._first_round = rounds_done + 1
        plan = RoundPlan(
            run_id=self.state["run_id"],
            schedule=replace(setup.schedule, seed=secrets.randbelow(1 << 31)) if setup.encrypt else setup.schedule,
            val_every=setup.val_every,
            agreement=setup.model.agreement(),
            sites=setup.site_names,
            class_names=self._names,
            recipe=setup.model.recipe,
            min_sites=setup.min_sites,
            timeout=setup.round_timeout,
            wait_lost=setup.wait_lost,
            wire=setup.model.recipe.aggregation.wire,
            # one for each worker, and one for the first that is done, unless its time would run while it waits
            window=setup.workers + (setup.round_timeout is None),
            encrypted=setup.model.recipe.aggregation.weighting if setup.encrypt else None,
        )
        with tqdm(total=setup.schedule.rounds, initial=rounds_done, unit="round", desc=setup.folder.parent.name, disable=None) as bar:
            heads = AuditHeads(self._folder, grid.site_of if isinstance(grid, NamedGrid) else None)
            loop = RoundLoop(
                grid, aggregator, plan, self._manifest, self._checkpoints, downlink, self._record(bar), heads, stop, setup.admit
            )
            self._clock = loop.clock
            tensors = interpolated(self._travelling, loop.run(tensors, rounds_done), setup.interpolate)
            if setup.held_out is None:
                scores = loop.evaluate(tensors, keep_masks=setup.chooses_postprocessing)
                tensors = downlink.held  # what was scored, as the sites hold it
                self._records.add_traffic(scores.traffic)
                if setup.chooses_postprocessing:
                    self._choose_postprocessing(grid, plan, heads, stop)
            else:  # no node of the federation: nothing travels
                scores = FinalScores(self._evaluate_held_out(setup.held_out, tensors, aggregator.residuals), None, {}, {}, {})
            self._watch_memory()
        self._finish(tensors | aggregator.residuals, scores)

    def _private_rounds(self) -> PrivateRounds | None:
        setup = self._setup
        if setup.privacy is None:
            return None
        return PrivateRounds(self._folder, setup.privacy, rounds=setup.schedule.rounds, sites=len(setup.site_names))

    def _choose_postprocessing(self, grid: Grid, plan: RoundPlan, heads: AuditHeads, stop: threading.Event) -> None:
        """For the whole run, from the validation cases of all folds that are trained by now."""
        started = time.perf_counter()
        document, traffic = choose_postprocessing(self._setup, grid, plan, heads, stop)
        self._clock_alone(started)
        document.save(self._folder.parent / POSTPROCESSING_FILE)
        for entry in traffic:
            self._records.add_traffic(entry)

    def _evaluate_held_out(self, site: SiteSetup, tensors: dict[str, Any], residuals: dict[str, Any]) -> dict[str, SiteDice]:
        started = time.perf_counter()
        scores = evaluate_alone(site, tensors, residuals)
        self._clock_alone(started)
        return scores

    def _clock_alone(self, started: float) -> None:
        now = time.perf_counter()
        self._clock.alone(now - started, now=now)

    def _record(self, bar: "tqdm[Any]") -> Callable[[RoundRecord], None]:
        def on_round(record: RoundRecord) -> None:
            self._records.add_progress(record.progress)
            self._records.add_traffic(record.communication)
            self._watch_memory()
            self._save_state(privacy_spent=record.progress["privacy"])  # now: a killed run has spent it, too
            losses = [site["loss"] for site in record.progress["sites"].values()]
            loss = sum(losses) / len(losses)
            dice = record.progress["dice"]
            score = "" if dice is None else f", Dice {dice:.4f} after round {record.progress['validated_round']}"
            log.info("round %d: loss %.4f%s, %.1f s", record.progress["round"], loss, score, record.progress["seconds"])
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
            if dice is not None:
                self._picture.draw(self._records.progress)

        return on_round

    def _finish(self, tensors: dict[str, Any], scores: FinalScores) -> None:
        shared = self._summary(scores.shared)
        summary = {"schema_version": 1, "rule": RULE, "grid": "plan", "round": self._setup.schedule.rounds} | shared
        if scores.personal is not None:
            summary["personal"] = self._summary(scores.personal)
        summary |= {"refused": scores.refused, "missing": scores.missing}
        write_json(self._folder / "validation" / "summary.json", summary)
        line = {"event": "final", "round": self._setup.schedule.rounds, "validation": shared["sites"], "dice": shared["dice"]}
        line |= {"refused": scores.refused, "missing": scores.missing}
        self._records.add_progress(line)
        self._picture.draw(self._records.progress)
        write_adapter(self._folder, self._initial | tensors, self._setup.model.bundle_info(self._setup.schedule.rounds))
        self.state["final"] = summary

    def _summary(self, scores: dict[str, SiteDice]) -> dict[str, Any]:
        """JSON of the scores by site and of all sites together."""
        by_site = {site: dice.to_dict(self._names) for site, dice in sorted(scores.items())}
        if not scores:
            return {"sites": by_site, "dice": None}
        together = combine_sites(scores).to_dict(self._names)
        return {"sites": by_site, "dice": together["dice"], "all_sites": together}

    def _watch_memory(self) -> None:
        """Workers live as long as the simulation and their peaks only grow, so a look after every round misses none."""
        for key, peak in (("peak_memory_bytes", worker_peak_bytes()), ("server_peak_memory_bytes", own_peak_bytes())):
            self.state[key] = max((value for value in (peak, self.state.get(key)) if value is not None), default=None)

    def _save_state(self, **changes: Any) -> None:
        self.state |= changes
        write_json(self._folder / "run.json", self.state)


def evaluate_alone(site: SiteSetup, tensors: dict[str, Any], residuals: dict[str, Any]) -> dict[str, SiteDice]:
    """Scores trained tensors at a site that took no part, in this process. Its local tensors, if there are any, are those of round 0."""
    worker = SiteWorker(site)
    worker.take(tensors, residuals)
    return worker.evaluate(rounds_done=0, report=site.state_folder / "validation.json")


def _cases_of(site: SiteSetup) -> list[Any]:
    """What a site trains on and is scored with, which classes it annotated where that is not all of them, and the regions if any."""
    return [site.site, site.train_cases, site.val_cases, *(known for known in (site.annotated, site.regions) if known)]
