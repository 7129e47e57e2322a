"""Which trained runs can be compared by cross-validation, and which configurations they make: each alone, and pairs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json
from fedsam_pipeline.inference.trained import FEDERATED_PREFIX, TRAIN_FIX
from fedsam_pipeline.model.trained_files import BUNDLE_FILE
from fedsam_pipeline.pipeline.train import TrainingRun
from fedsam_pipeline.pipeline.train_request import RunSetup, TrainRequest, run_setups

log = logging.getLogger(__name__)
JOINED = " + "
"""between the names of a pair"""


@dataclass(frozen=True)
class Candidate:
    """A federated run with all folds.

    Attributes:
        name: its folder below the dataset's results.
        folder: that folder.
        setups: fold to the run's setup: model, sites, and the cases that its training did not see.
    """

    name: str
    folder: Path
    setups: Mapping[str, RunSetup]

    def folds(self) -> dict[str, Path]:
        """Fold to its folder."""
        return {fold: setup.folder for fold, setup in self.setups.items()}


def find_candidates(
    preprocessed: Path, results: Path, folds: Sequence[str], only: Sequence[Path] | None = None
) -> tuple[list[Candidate], dict[str, str]]:
    """The federated runs of a dataset whose folds are all trained, checked against the splits and cases of today.

    Args:
        preprocessed: folder of the planned dataset.
        results: root of all results.
        folds: numbered folds.
        only: run folders to take; ``None``: all.

    Returns:
        The candidates by name, and of the other runs name to reason.

    Raises:
        FedsamError: a run of ``only`` cannot be taken, or none can.
    """
    dataset = results / preprocessed.name
    runs = sorted({path.parents[1] for path in dataset.glob(f"*/{FEDERATED_PREFIX}*/fold_*/{BUNDLE_FILE}")}) if only is None else only
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    for run in runs:
        name = "/".join(run.resolve().parts[-2:])
        try:
            found.append(Candidate(name, run, {fold: _setup(run / f"fold_{fold}", preprocessed, results) for fold in folds}))
        except FedsamError as error:
            if only is not None:
                raise
            left_out[name] = error.what
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise FedsamError(
            f"no federated run has folds {', '.join(folds)} trained",
            path=dataset,
            found=reasons or "no trained federated run",
            expected=f"fold_{folds[0]}/{BUNDLE_FILE} and so on",
            fix=f"{TRAIN_FIX.split(', or')[0]} -f FOLD, or name fewer folds with -f",
        )
    return found, left_out


def _setup(fold: Path, preprocessed: Path, results: Path) -> RunSetup:
    """The setup that a fold was trained with.

    Raises:
        FedsamError: the fold is not trained, was trained by another version, or with other cases, plans or recipes than there are now.
    """
    path = fold / "run.json"
    if not (fold / BUNDLE_FILE).is_file():
        raise FedsamError(f"{fold.name} is not trained", path=fold, expected=BUNDLE_FILE, fix="train it, or name fewer folds with -f")
    request = _request(read_json(path, fix="train the fold again").get("arguments"), path)
    matching = [setup for setup in run_setups(preprocessed, results, request) if setup.folder.resolve() == fold.resolve()]
    if len(matching) != 1 or matching[0].protocol != "federated":
        raise FedsamError(
            "a run is not where its arguments put it",
            path=fold,
            expected="a federated run of this dataset",
            fix="move it back, or leave it out",
        )
    TrainingRun(matching[0], request)  # refuses what was trained on other cases, or with another plan or recipe
    return matching[0]


def _request(arguments: Any, path: Path) -> TrainRequest:
    known = {each.name for each in fields(TrainRequest)}
    if not isinstance(arguments, dict) or not arguments.keys() <= known:
        raise FedsamError(
            "a run does not say how it was trained", path=path, found=arguments, expected="arguments", fix="train the fold again"
        )
    start = arguments.get("init")
    return TrainRequest(
        **arguments | {"init": None if start is None else Path(start), "device": "auto", "resume": True, "overwrite": False}
    )


@dataclass(frozen=True)
class Configuration:
    """One or two candidates whose probabilities are averaged."""

    members: tuple[str, ...]

    @property
    def name(self) -> str:
        """What tables call it."""
        return JOINED.join(self.members)


def configurations(candidates: Sequence[Candidate], *, pairs: bool) -> list[Configuration]:
    """Each alone, then the pairs."""
    names = [candidate.name for candidate in candidates]
    return [Configuration((name,)) for name in names] + [Configuration(pair) for pair in combinations(names, 2) if pairs]
