"""What a site does with a message: train a round, score a model. Knows data, model and disk; the messages are ``client_app``'s."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsam_pipeline.dataset.label_scheme import IGNORE, LabelScheme
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.evaluation.metrics import counts
from fedsam_pipeline.evaluation.summary import SiteDice, summarize_site
from fedsam_pipeline.federation.checkpoints import KEPT_AT_SITE, CheckpointSeries
from fedsam_pipeline.federation.codec.coding import Encoded, decode, encode
from fedsam_pipeline.federation.lora_aggregation.methods import REBASING
from fedsam_pipeline.federation.lora_aggregation.pairs import factor_kind
from fedsam_pipeline.federation.lora_aggregation.rolora import frozen_in
from fedsam_pipeline.federation.update_bounds import stays_between
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.files import write_json
from fedsam_pipeline.flower.clipping import clipped
from fedsam_pipeline.flower.kept_masks import KeptMasks
from fedsam_pipeline.flower.reach import state_bound
from fedsam_pipeline.flower.worker_model import worker_model
from fedsam_pipeline.inference.ensemble import stream_ensemble
from fedsam_pipeline.inference.view_predictors import view_predictors
from fedsam_pipeline.model.build import ModelSetup
from fedsam_pipeline.model.compilation import compile_encoder, uncompiled
from fedsam_pipeline.model.device import autocast_dtype
from fedsam_pipeline.model.lora import merged_lora
from fedsam_pipeline.model.lora_residuals import folded_residuals
from fedsam_pipeline.model.trained_files import write_adapter, write_documents
from fedsam_pipeline.planning.privacy import DEFAULT_FLOOR
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.execution import Execution
from fedsam_pipeline.specs.manifest import Manifest, Wire
from fedsam_pipeline.training.execution import apply_execution, choose_execution, memory_budget
from fedsam_pipeline.training.feature_pool import FILE_NAME
from fedsam_pipeline.training.local_trainer import LocalTrainer, RoundResult, RunSchedule
from fedsam_pipeline.training.slab_loader import SlabLoader

log = logging.getLogger(__name__)
_LOCAL_PREFIX, _HELD_PREFIX, _LOST_PREFIX = "local/", "held/", "residual/"
"""In a site's state, beside the optimizer's moments: tensors that never travel, the state the round started from, what its update lost"""
PERSONAL_FOLDER, FEATURES_FOLDER = "personal", "features"


@dataclass(frozen=True)
class SiteSetup:
    """All that one site knows before the first message.

    Attributes:
        site: its name in the federation.
        store_folder: its preprocessed cases.
        train_cases, val_cases: of the fold.
        owner: case to the site that the case is reported under (centralized training holds the cases of several).
        model: plan, recipe and base weights.
        state_folder: its optimizer moments, local tensors, the last state it received, what its last update lost, and logs.
        device: name of the device.
        compiled: whether it compiles the image encoder; results stay the same but for rounding.
        num_threads: CPU threads it may use.
        execution_file: where this machine keeps how it carries out a step.
        memory_target: bytes that the images of a step may take on the device; ``None``: most of what is free.
        workers: processes that share this memory.
        annotated: owning site to the foreground values it annotated, of the sites that did not annotate every class. Known here only: the
            plan is the same everywhere.
        regions: name to the values it unites, in the order of the scores; empty where the plan's classes are scored.
        fold: name of the fold.
        other_folds: name to this site's state folder in the same run's other folds, trained or not, whose validation cases are not seen by
            the models that they score either: postprocessing is chosen from all of them.
        patients: case to patient, where patients have several cases.
        privacy_floor: patients that the sums stand for from which postprocessing is chosen.
        encryption_key: the sites' common key: updates leave this site encrypted, or not at all. ``None``: it has none.
    """

    site: str
    store_folder: Path
    train_cases: tuple[str, ...]
    val_cases: tuple[str, ...]
    owner: dict[str, str]
    model: ModelSetup
    state_folder: Path
    device: str
    num_threads: int
    execution_file: Path
    memory_target: int | None = None
    workers: int = 1
    annotated: dict[str, tuple[int, ...]] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fold: str = "0"
    other_folds: dict[str, Path] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)
    privacy_floor: int = DEFAULT_FLOOR
    compiled: bool = False
    encryption_key: Path | None = None

    @property
    def labels(self) -> LabelScheme:
        """What the values of the store's masks mean, and what Dice is reported of."""
        by_value = sorted(self.model.plans.labels.items(), key=lambda item: item[1])  # a plan on disk has them by name
        return LabelScheme(dict(by_value), regions=self.regions)


class SiteWorker:
    """One site at one message. All that outlives the message is on the site's disk."""

    def __init__(self, setup: SiteSetup) -> None:
        self._setup = setup
        self._adapted, self._initial = worker_model(setup.model, setup.device, compiled=setup.compiled)
        self._store = CaseStore(setup.store_folder)
        self._states = CheckpointSeries(setup.state_folder, "state_r", KEPT_AT_SITE)
        self._loaded: tuple[int, dict[str, Tensor]] | None = None

    @property
    def manifest(self) -> Manifest:
        """Of the tensors that train and travel."""
        return self._adapted.manifest

    @property
    def received(self) -> dict[str, Tensor]:
        """The state that this message brought."""
        return self._received

    def held(self, after_round: int) -> dict[str, Tensor]:
        """The federated state that this site received for a round, against which the next one comes; without it that of round 0."""
        if after_round in self._states.rounds():
            try:
                return _without_prefix(self._state_after(after_round), _HELD_PREFIX)
            except FedsamError as error:
                log.warning("%s asks for the full state: %s", self._setup.site, error)
        return {entry.name: self._initial[entry.name] for entry in self.manifest.federated}

    def receive(self, payload: bytes, folded: Mapping[str, NDArray[np.generic]], *, rounds_done: int) -> float:
        """Takes in what the server sent.

        Args:
            payload: the federated state, against the one that came for round ``rounds_done``.
            folded: what FedEx-LoRA folds into the base weights; checked against the model when it is folded.
            rounds_done: the last round that this site took part in.

        Returns:
            Seconds of decoding.

        Raises:
            ReferenceMissing: this site does not hold the state that the payload comes against.
            UpdateRefused: the manifest does not allow what came.
        """
        started = time.perf_counter()
        if folded and (rounds_done == 0 or self._setup.model.recipe.aggregation.lora_method != "fedex"):
            raise UpdateRefused("residuals for the base weights, where no FedEx-LoRA can have made any")
        tensors = decode(payload, self.held(rounds_done), self.manifest)
        self.take(tensors, {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in folded.items()})
        return time.perf_counter() - started

    def check_received(self, schedule: RunSchedule, wire: Wire, rounds_done: int, *, noisy: bool = False) -> None:
        """Refuses a state that no run of this schedule can have reached after so many rounds. Before the first it must be the one that this
        site builds itself. ``noisy``: noise was added to it on purpose, which has no bound.

        Raises:
            UpdateRefused: a value is too far away.
        """
        recipe = self._setup.model.recipe
        if rounds_done == 0 or (stays_between(recipe.aggregation) and not noisy):
            state_bound(recipe, schedule, wire, rounds_done).check(self._received, self._initial)

    def take(self, tensors: dict[str, Tensor], residuals: dict[str, Tensor]) -> None:
        """Trains and scores from these tensors, with these residuals of FedEx-LoRA folded into the base weights."""
        self._received, self._residuals = tensors, residuals

    def train(
        self, schedule: RunSchedule, round_number: int, *, wire: Wire = "fp32", proximal_mu: float = 0.0, clip: float | None = None
    ) -> tuple[Encoded, RoundResult]:
        """Trains one round from the received tensors.

        Moments, local tensors and what the last update lost are those of the last round that this site trained, which is the one before
        unless it was away. A site without any state starts fresh (round 1, or a late joiner).

        Args:
            schedule: of the whole run.
            round_number: from 1.
            wire: how the update travels.
            proximal_mu: strength of FedProx's term.
            clip: largest norm of the update, before the wire.

        Returns:
            The federated tensors after the round as a payload against the received ones, and what the round gave.
        """
        setup = self._setup
        annotated = {case: setup.annotated[site] for case in setup.train_cases if (site := setup.owner[case]) in setup.annotated}
        loader = SlabLoader(self._store, setup.train_cases, setup.model.plans, annotated, setup.model.configuration)
        execution = self._execution()
        apply_execution(self._adapted.model, execution)
        if self._setup.compiled:
            compile_encoder(self._adapted.model, torch.device(self._setup.device))
        features = setup.state_folder / FEATURES_FOLDER
        trainer = LocalTrainer(
            self._adapted,
            loader,
            setup.model.plans,
            setup.model.recipe,
            torch.device(setup.device),
            micro_batch=execution.micro_batch,
            feature_folder=features,
        )
        state = self._state_before(round_number)
        self._adapted.load_tensors(self._received | _without_prefix(state, _LOCAL_PREFIX))
        trainer.load_optimizer_state({name: tensor for name, tensor in state.items() if self._still_holds(name)})
        with folded_residuals(self._adapted.model, self._residuals):
            result = trainer.train_round(
                schedule, round_number=round_number, site=setup.site, proximal_mu=proximal_mu, frozen=self._frozen(round_number)
            )
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in self._adapted.trained_tensors().items()}
        travelling = {entry.name for entry in self.manifest.federated}
        local = {f"{_LOCAL_PREFIX}{name}": tensor for name, tensor in tensors.items() if name not in travelling}
        update = {name: tensors[name] for name in sorted(travelling)}
        if clip is not None:
            update = {name: tensor.float() for name, tensor in clipped(update, self._received, clip).items()}
        encoded = encode(update, self._received, wire, _without_prefix(state, _LOST_PREFIX))
        coded = {f"{_HELD_PREFIX}{name}": tensor for name, tensor in self._received.items()}
        coded |= {f"{_LOST_PREFIX}{name}": tensor for name, tensor in encoded.residual.items()}
        self._loaded = None  # the disk changes
        self._states.save(round_number, trainer.optimizer_state() | local | coded)
        if round_number == schedule.rounds:
            (features / FILE_NAME).unlink(missing_ok=True)  # of no more use
        return encoded, result

    def _frozen(self, round_number: int) -> set[str]:
        """Trained tensors that keep their values in a round: RoLoRA trains one factor at a time."""
        if self._setup.model.recipe.aggregation.lora_method != "rolora":
            return set()
        return {name for name in self.manifest.trained_names if factor_kind(name) == frozen_in(round_number)}

    def _still_holds(self, name: str) -> bool:
        """Whether a tensor of the last state still means something: not an optimizer moment of a factor that was re-based since."""
        rebased = self._setup.model.recipe.aggregation.lora_method in REBASING
        return not (rebased and factor_kind(name.partition("/")[2]) is not None)

    def _execution(self) -> Execution:
        """How this machine carries out a step: as it did before, or as a probe step finds now, which is written down."""
        setup = self._setup
        batch = setup.model.plans.training.effective_batch
        if setup.execution_file.exists():
            known = Execution.load(setup.execution_file, fix="delete the file; it is found anew")
            if (known.device, known.batch) == (setup.device, batch):
                return known
        device = torch.device(setup.device)
        budget = memory_budget(device, setup.memory_target, workers=setup.workers)
        with uncompiled(self._adapted.model):  # the same number on every run, whichever site of this process comes first
            execution = choose_execution(self._adapted.model, batch, device, autocast_dtype(device), budget)
        execution.save(setup.execution_file)
        log.info("%s: %s", setup.site, execution.why)
        return execution

    def _state_after(self, round_number: int) -> dict[str, Tensor]:
        """The state of a round on disk, for reading only. One message asks for the same one several times: the last one read is kept."""
        if self._loaded is None or self._loaded[0] != round_number:
            self._loaded = None
            self._loaded = round_number, self._states.load(round_number)
        return self._loaded[1]

    def _state_before(self, round_number: int) -> dict[str, Tensor]:
        known = self._states.rounds()
        if round_number == 1 or not known or min(known) == round_number:  # this very round is done again by a site that joined in it
            if round_number > 1:
                log.warning("%s joins in round %d: optimizer moments start afresh", self._setup.site, round_number)
            return self._initial_local()
        if min(known) > round_number:
            raise StateMissing(f"round {round_number} needs the state of a round before it; this site has {known}")
        return self._last_state(round_number - 1, f"round {round_number}")

    def _last_state(self, up_to: int, what: str) -> dict[str, Tensor]:
        """The state of the last round up to this one that can be read. There is one on disk."""
        if self._loaded is None or self._loaded[0] != up_to:
            self._loaded = self._states.latest(before=up_to + 1)
        assert self._loaded is not None  # it says so where none can be read
        number, state = self._loaded
        if number < up_to:
            log.warning("%s has no later state: %s goes on from its state of round %d", self._setup.site, what, number)
        return state

    def _initial_local(self) -> dict[str, Tensor]:
        """Local tensors at round 0: the worker's model may have served other sites in between and must not leak into this one."""
        return {f"{_LOCAL_PREFIX}{entry.name}": self._initial[entry.name] for entry in self.manifest.personal}

    def _own(self, rounds_done: int) -> dict[str, Tensor]:
        """The tensors that stay here, as they were after a round."""
        if not self.manifest.personal:
            return {}
        known = any(number <= rounds_done for number in self._states.rounds())
        state = self._last_state(rounds_done, f"the model after round {rounds_done}") if known else self._initial_local()
        return _without_prefix(state, _LOCAL_PREFIX)

    def write_personal_bundle(self, *, rounds_done: int) -> Path:
        """Writes this site's own model, the received tensors with those that stay here, as a folder that prediction takes (``-m``).

        Returns:
            ``personal/`` in the site's state folder.
        """
        model, folder = self._setup.model, self._setup.state_folder / PERSONAL_FOLDER
        write_documents(folder, model.plans, model.recipe, self.manifest)
        write_adapter(folder, self._received | self._own(rounds_done) | self._residuals, model.bundle_info(rounds_done))
        return folder

    def evaluate(
        self,
        *,
        rounds_done: int,
        personal: bool = True,
        max_cases: int | None = None,
        report: Path | None = None,
        masks: KeptMasks | None = None,
    ) -> dict[str, SiteDice]:
        """Scores the received model on whole validation volumes, on the plan's grid.

        Args:
            rounds_done: the round they come from.
            personal: with the site's own tensors of that round, where some stay here; ``False``: with theirs of round 0, which is the
                model that all sites share.
            max_cases: at most so many cases, evenly spread over the sorted list; ``None`` for all.
            report: file for the scores of single cases; it stays at the site.
            masks: keeps the predicted masks; they stay at the site.

        Returns:
            Dice by owning site, of the regions or else of the classes; empty where the fold has no validation case here. Ignored voxels do
            not count, nor what the owner did not annotate or annotated in part.
        """
        setup = self._setup
        self._adapted.load_tensors(self._received | self._own(rounds_done if personal else 0))
        device = torch.device(setup.device)
        labels = setup.labels
        groups = list(labels.scored.values())
        scorable = {site: labels.scorable(values) for site, values in setup.annotated.items()}
        plans, configuration = setup.model.plans, setup.model.configuration
        views = view_predictors(self._adapted.model.eval(), plans, configuration, device, autocast_dtype(device))
        tables: dict[str, list[NDArray[np.int64]]] = {}
        rows = []
        if masks is not None:
            masks.clear()
        with folded_residuals(self._adapted.model, self._residuals), merged_lora(self._adapted.model):
            for name in _spread(sorted(setup.val_cases), max_cases):
                case = self._store.open(name)
                image = case.image if len(views) == 1 else case.image[:]  # the store is made for slices along its first axis
                scores = stream_ensemble(views, image, setup.state_folder)
                prediction = np.concatenate([part.argmax(axis=1) for part in scores])
                if masks is not None:
                    masks.add(name, prediction)
                table = counts(np.asarray(case.labels[:]), prediction, len(labels.classes), groups=groups, ignore=IGNORE)
                site = setup.owner[name]
                tables.setdefault(site, []).append(table)
                known = scorable.get(site, np.ones(len(groups), dtype=np.bool_))
                rows.append(
                    {
                        "case": name,
                        "site": site,
                        "tp_fp_fn": [row if scored else None for row, scored in zip(table.tolist(), known, strict=True)],
                    }
                )
        if masks is not None:
            masks.finish(setup.model.plans.preprocessing_sha256(), {name: setup.owner[name] for name in setup.val_cases})
        if report is not None:
            write_json(report, {"schema_version": 1, "grid": "plan", "cases": rows})
        return {site: summarize_site(of_site, scorable.get(site)) for site, of_site in sorted(tables.items())}


class StateMissing(RuntimeError):
    """The site's disk lacks the state that a round needs."""


def _without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _spread(cases: Sequence[str], limit: int | None) -> list[str]:
    if limit is None or len(cases) <= limit:
        return list(cases)
    return [cases[i * len(cases) // limit] for i in range(limit)]
