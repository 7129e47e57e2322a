"""``fedsam_find_best_configuration``: which trained runs, alone or in pairs, are best on cases that their trainings did not see."""

import logging
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.evaluation.dice_sums import ConfigurationDice, DiceSums, federated_dice
from fedsam_pipeline.evaluation.metrics import RULE
from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.files import locked_folder, make_folder, write_json, write_text
from fedsam_pipeline.flower.configuration_query import Question, ask_sites, make_query_app
from fedsam_pipeline.flower.simulation import Grid, simulate_app
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.model.device import choose_device
from fedsam_pipeline.pipeline.configurations import Candidate, Configuration, configurations, find_candidates
from fedsam_pipeline.pipeline.site_configurations import SiteSelection

log = logging.getLogger(__name__)
FOLDER, RESULT_FILE, COMMAND_FILE = "best_configuration", "best_configuration.json", "predict_command.txt"
BUSY = "another process compares configurations of this dataset"
NO_CASES = "too few validation cases for the privacy floor"


def find_best_configuration(
    preprocessed: Path,
    raw: Path,
    results: Path,
    *,
    folds: Sequence[str] = ("0", "1", "2", "3", "4"),
    models: Sequence[Path] | None = None,
    pairs: bool = True,
    floor: int | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> dict[str, Any]:
    """Asks every site how good each configuration is on its own cases, and writes the best one and how to predict with it.

    Every case is predicted with the fold that did not train on it, with mirroring as ``fedsam_predict`` does, without postprocessing, and
    scored on the image's own grid. Of a site only sums over its cases arrive here. What a site has done is kept: repeat an interrupted
    call.

    Args:
        preprocessed: folder of the planned dataset.
        raw: root of the raw datasets.
        results: root of all results.
        folds: numbered folds, which every candidate must have.
        models: run folders; ``None``: all federated runs that have these folds.
        pairs: compare the mean of two candidates' probabilities, too.
        floor: patients that every number which leaves a site stands for, where that is more than the floor of planning.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: sites that compute at the same time; ``None``: as many as cores.

    Returns:
        The content of ``best_configuration.json``.

    Raises:
        FedsamError: no run can be compared, one of ``models`` cannot, a file at a site is missing or broken, or no site may tell anything.
    """
    candidates, left_out = find_candidates(preprocessed, results, folds, models)
    chosen = configurations(candidates, pairs=pairs)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    dataset = load_raw_dataset(raw / preprocessed.name)
    folder = results / preprocessed.name / FOLDER
    make_folder(folder)
    with log_file(folder / "logs", "fedsam_find_best_configuration"), logging_redirect_tqdm(), locked_folder(folder, BUSY):
        tasks = _tasks(candidates, chosen, dataset.folder, folder, floor, device, workers)
        question = Question(
            tuple(each.name for each in chosen),
            tuple(dataset.label_scheme.scored),
            {task.site: sum(map(len, task.cases.values())) for task in tasks},
        )
        print(f"{len(chosen)} configuration(s) of {len(candidates)} run(s) at {len(tasks)} site(s), folds {' '.join(folds)}", flush=True)
        told, refused = _ask(tasks, question, AuditHeads(folder), workers)
        record = _record(preprocessed.name, candidates, chosen, folds, tasks[0].floor, told, refused, left_out)
        write_text(folder / COMMAND_FILE, "\n".join(record["commands"]) + "\n")
        write_json(folder / RESULT_FILE, record)
    print(selection_table(record))
    print(f"best: {record['best']}\n" + "\n".join(record["commands"]))
    print(f"written: {folder / RESULT_FILE}, and {COMMAND_FILE} beside it")
    return record


def _tasks(
    candidates: Sequence[Candidate],
    chosen: Sequence[Configuration],
    raw: Path,
    folder: Path,
    floor: int | None,
    device: str,
    workers: int | None,
) -> list[SiteSelection]:
    """One a site. The cases of a fold are the same for all candidates, because all of them fit today's splits."""
    sites: dict[str, dict[str, tuple[str, ...]]] = {}
    patients: dict[str, Mapping[str, str]] = {}
    for fold, setup in candidates[0].setups.items():
        for site in setup.sites:
            sites.setdefault(site.site, {})[fold] = site.val_cases
            patients[site.site] = site.patients
    planned = max(site.privacy_floor for each in candidates for setup in each.setups.values() for site in setup.sites)
    at_once = workers or min(len(sites), usable_cores())
    return [
        SiteSelection(
            site=site,
            raw=raw.absolute(),
            cases=cases,
            folders={candidate.name: {fold: path.absolute() for fold, path in candidate.folds().items()} for candidate in candidates},
            chosen=tuple(chosen),
            patients=patients[site],
            floor=max(planned, floor or 1),
            device=choose_device(device).type,
            num_threads=max(1, usable_cores() // at_once),
            state_folder=(folder / "sites" / site).absolute(),
        )
        for site, cases in sorted(sites.items())
    ]


def _ask(
    tasks: Sequence[SiteSelection], question: Question, heads: AuditHeads, workers: int | None
) -> tuple[dict[str, DiceSums], dict[str, str]]:
    """What the sites told; raises where one failed, or none may tell anything."""
    found: list[tuple[dict[str, DiceSums], dict[str, str]]] = []

    def serve(grid: Grid, stop: threading.Event) -> None:
        found.append(ask_sites(grid, question, heads, stop))

    simulate_app(tasks, make_query_app, serve, workers=workers or min(len(tasks), usable_cores()))
    told, refused = found[0]
    silent = sorted(set(question.most_cases) - told.keys())
    if silent:
        raise FedsamError(
            f"{len(silent)} of {len(tasks)} sites gave no usable answer",
            found="; ".join(f"{site}: {reason}" for site, reason in refused.items()) or ", ".join(silent),
            expected="every site to answer",
            fix="see the sites' logs, mend what they name, and repeat the command: what is done is kept",
        )
    if not any(sums.classes for sums in told.values()):
        raise FedsamError(
            "no site has enough validation cases to tell sums of",
            found=", ".join(f"{site}: {number}" for site, number in question.most_cases.items()),
            expected=f"cases of {tasks[0].floor} patients or more in which a class is there (the floor of planning, or --privacy_floor)",
            fix="train more folds and name them with -f",
        )
    return told, refused


def _record(
    dataset: str,
    candidates: Sequence[Candidate],
    chosen: Sequence[Configuration],
    folds: Sequence[str],
    floor: int,
    told: Mapping[str, DiceSums],
    refused: Mapping[str, str],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    dice = federated_dice(told)
    best = next(iter(dice))
    members = next(each.members for each in chosen if each.name == best)
    folders = {candidate.name: candidate.folder for candidate in candidates}
    return {
        "schema_version": 1,
        "dataset": dataset,
        "rule": RULE,
        "grid": "native",
        "folds": list(folds),
        "privacy_floor": floor,
        "best": best,
        "configurations": [_row(name, found) for name, found in dice.items()],
        "sites": {site: sums.to_dict() for site, sums in told.items()},
        "withheld": {site: NO_CASES for site, sums in told.items() if not sums.classes},
        "refused": dict(refused),
        "left_out": dict(left_out),
        "commands": predict_commands([folders[name] for name in members], folds),
    }


def _row(name: str, found: ConfigurationDice) -> dict[str, Any]:
    return {"configuration": name, **asdict(found)}


def predict_commands(runs: Sequence[Path], folds: Sequence[str]) -> list[str]:
    """What to type to predict with the mean of some runs; ``IMAGES`` and ``MASKS`` stand for the user's folders."""
    chosen_folds = " ".join(folds)

    def command(run: Path, target: str) -> str:
        return f"fedsam_predict -i IMAGES -o {target} -m {shlex.quote(str(run))} -f {chosen_folds}"

    if len(runs) == 1:
        return [command(runs[0], "MASKS")]
    parts = [f"MASKS/part_{number}" for number in range(len(runs))]
    predicts = [f"{command(run, part)} --save_probabilities" for run, part in zip(runs, parts, strict=True)]
    return [*predicts, f"fedsam_ensemble -i {' '.join(parts)} -o MASKS"]


def selection_table(record: Mapping[str, Any]) -> str:
    """All configurations, the best first: Dice of every site that told of its cases, their mean, and what it is below the best."""
    rows = record["configurations"]
    sites = list(rows[0]["sites"])
    lines = [["configuration", *sites, "mean", "to best"]]
    for row in rows:
        dice = [f"{value:.4f}" for value in (*(row["sites"][site] for site in sites), row["dice"])]
        lines.append([row["configuration"], *dice, f"{row['dice'] - rows[0]['dice']:+.4f}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    notes = ["masks before postprocessing; fedsam_predict applies what was chosen for a run"]
    notes += [f"{site} tells nothing: {reason}" for site, reason in record["withheld"].items()]
    return "\n".join([*text, record["rule"], *notes])
