"""``fedsam_demo_deployment``: a server and three hospitals as processes on this machine; one has a power cut and comes back."""

import json
import math
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_heads import HEADS_FILE
from fedsam_pipeline.files import read_json, write_json, write_text
from fedsam_pipeline.flower.deployment.kit import SERVER_FOLDER
from fedsam_pipeline.flower.deployment.local import FEDERATION, LocalFederation
from fedsam_pipeline.flower.deployment.start_files import commands_folder
from fedsam_pipeline.flower.messages import TRAIN_ROUND
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.weights import find_weights
from fedsam_pipeline.pipeline.audit import verify_trails
from fedsam_pipeline.pipeline.demo import DATASET
from fedsam_pipeline.pipeline.report import PAGE, report
from fedsam_pipeline.pipeline.train_request import TrainRequest, run_place
from fedsam_pipeline.specs.recipe import load_recipe

NUM_SITES = 3
ROUNDS = 3
WAIT_LOST = 180.0
"""seconds that a round waits for the site that was killed: a SuperLink lets it in again a minute later"""
CUT_IN = 2
"""the round in which one site is killed"""


def run_demo_deployment(
    folder: Path, *, base_model: str, local_steps: int, size: str, round_timeout: float, overwrite: bool = False
) -> Path:
    """Makes a cohort, gives three sites their own folders and start-up kits, starts all, trains a few rounds, reports.

    Args:
        folder: everything is written below it.
        base_model: of the registry.
        local_steps: optimizer steps of a round.
        size: of the cohort, ``demo`` or ``tiny``.
        round_timeout: seconds that the killed site is waited for.
        overwrite: delete ``folder`` first where it is there.

    Returns:
        The report, an HTML page.

    Raises:
        FedsamError: ``folder`` is there, or the training ended with an error.
        RuntimeError: the site was not killed, or did not come back, or an audit trail is broken.
    """
    started = time.perf_counter()
    if folder.exists():
        if not overwrite:
            raise FedsamError(
                "this folder is there already", path=folder, expected="a new one", fix="--overwrite deletes it, or give another -o"
            )
        shutil.rmtree(folder)
    weights = find_weights(base_model_spec(base_model))
    _say("1/5 a made-up cohort, each site's cases in a folder of its own")
    whole = folder / "whole" / DATASET
    dataset = make_demo_dataset(whole, size="tiny" if size == "tiny" else "demo")
    sites = sorted(dataset.sites)[:NUM_SITES]
    for site in sites:
        give_site(dataset, site, folder / "hospitals" / site / "raw" / DATASET)
    with LocalFederation(folder, sites, base_model, "privacy_floor=1") as federation:
        _say("2/5 a start-up kit: certificates, keys, a signed app; server and sites are started")
        federation.make()
        if weights is not None:
            for who in (SERVER_FOLDER, *sites):
                cache = federation.data(who) / "cache"
                cache.mkdir(parents=True)
                (cache / weights.name).symlink_to(weights.absolute())
        federation.start_all()
        _say(f"3/5 {ROUNDS} rounds over TLS; {sites[-1]} is killed while it trains round {CUT_IN}, and started again")
        request = TrainRequest(
            fold="0", rounds=ROUNDS, local_steps=local_steps, val_every=0, round_timeout=round_timeout, wait_lost=WAIT_LOST
        )
        place = Path(DATASET, run_place(load_recipe(request.recipe), request.plans_name, request, "federated"))
        _train(federation, request, base_model, sites[-1], place)
        _say("4/5 the audit trails of the sites, held against what the server knows")
        fold = federation.data(SERVER_FOLDER) / "results" / place
        trails, lost = verify_trails([federation.data(site) / "results" / place / "sites" / site for site in sites], fold / HEADS_FILE)
        print("\n".join(map(str, (*trails, *lost))))
        if lost or any(trail.fault is not None for trail in trails):
            raise RuntimeError("an audit trail is not what the server knows of it: the lines above say where")
    _say("5/5 who took part, and the report")
    records = [json.loads(line) for line in (fold / "progress.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = [record for record in records if record["event"] == "round"]
    print(attendance_table(rounds, sites))
    if sites[-1] not in rounds[CUT_IN - 1]["missing"] or rounds[-1]["missing"]:
        raise RuntimeError("the site that was killed was not missed, or did not come back: the table above says so")
    page = folder / PAGE
    report(model=fold, output=page)
    print(f"\nreport: {page}   ({(time.perf_counter() - started) / 60:.1f} minutes)")
    return page


def _train(federation: LocalFederation, request: TrainRequest, base_model: str, victim: str, place: Path) -> None:
    """Runs the command that an operator would type, and cuts one site's power meanwhile."""
    faults: list[Exception] = []

    def power_cut() -> None:
        try:
            federation.wait_for_message(victim, place, TRAIN_ROUND, round_number=CUT_IN, seconds=math.inf)  # or the training ends
            federation.kill(victim)
            print(f"== {victim} is killed", flush=True)
            federation.start(victim)
        except Exception as error:  # said where the training ends
            faults.append(error)

    command = [str(commands_folder() / "fedsam_train_federated"), "-d", DATASET, "--superlink", FEDERATION, "-m", base_model]
    command += ["-f", request.fold, "--rounds", str(request.rounds), "--local_steps", str(request.local_steps), "--val_every", "0"]
    command += ["--round_timeout", f"{request.round_timeout:g}", "--wait_lost", f"{request.wait_lost:g}"]
    print(f"$ {' '.join(['fedsam_train_federated', *command[1:]])}", flush=True)
    accident = threading.Thread(target=power_cut, daemon=True)
    accident.start()
    code = subprocess.run(command, env=federation.server_environment(), check=False).returncode
    accident.join(timeout=1.0)
    if code != 0 or faults or accident.is_alive():
        raise FedsamError(
            "the training of this demo did not end well",
            path=federation.folder,
            found=f"exit code {code}{''.join(f'; {fault}' for fault in faults)}",
            fix="the lines above, and server.log and SITE.log there, say why; a slow machine needs a longer --round_timeout",
        )


def give_site(whole: RawDataset, site: str, folder: Path) -> None:
    """Copies a site's labelled cases into a raw dataset of its own, which names no other site."""
    content: dict[str, Any] = read_json(whole.folder / "dataset.json")
    own = {key: value for key, value in content.items() if key not in ("sites", "test_sites", "patients")}
    cases = whole.sites[site]
    for case in cases:
        for path in (*whole.image_paths(case), whole.label_path(case)):
            target = folder / path.relative_to(whole.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    write_json(folder / "dataset.json", own | {"numTraining": len(cases)})
    write_text(folder / "site.toml", f'site = "{site}"\n')


def attendance_table(rounds: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> str:
    """A line a round, a column a site: its loss, or why there is none."""
    lines = ["round  " + "  ".join(f"{site:<12}" for site in sites)]
    for record in rounds:
        cells = [f"loss {record['sites'][site]['loss']:.3f}" if site in record["sites"] else "missing" for site in sites]
        lines.append(f"{record['round']:>5}  " + "  ".join(f"{cell:<12}" for cell in cells))
    lines += [f"{site} in round {record['round']}: {reason}" for record in rounds for site, reason in record["missing"].items()]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
