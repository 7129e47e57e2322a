"""The files of one trained fold that the report is made of."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json
from fedsam_pipeline.specs.execution import Execution
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import Recipe

T = TypeVar("T")
_COPY = "copy the whole folder again, as fedsam_train_federated wrote it"


@dataclass(frozen=True)
class RunFiles:
    """What a fold folder holds. The first four are there from the start of a training, the others as it goes on.

    Attributes:
        folder: ``fold_K``.
        plans, recipe, manifest: the agreed documents.
        run: ``run.json``.
        records: the lines of ``progress.jsonl``.
        traffic: the entries of ``communication.json``.
        summary: ``validation/summary.json``; ``None`` before the end.
        execution: site to how its machine carried out a step.
        site_scores: ``sites/SITE/validation.json``, the scores of single cases: of a site that lies on this machine.
        shared_scores: the same of the shared model, where sites keep tensors of their own; else those of ``site_scores``.
    """

    folder: Path
    plans: Plans
    recipe: Recipe
    manifest: Manifest
    run: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    traffic: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    execution: Mapping[str, Execution]
    site_scores: Sequence[Mapping[str, Any]]
    shared_scores: Sequence[Mapping[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> "RunFiles":
        """Reads them.

        Raises:
            FedsamError: the folder is no fold of a training, or a file in it is broken.
        """
        if not (folder / "run.json").is_file():
            raise FedsamError(
                "this folder holds no training",
                path=folder,
                found=", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no such folder",
                expected="run.json, in a fold_K folder as fedsam_train_federated wrote it",
                fix="check -m; an imported model comes with a MODEL_CARD.md instead",
            )
        manifest = Manifest.load(folder / "manifest.json", fix=_COPY)
        summary = folder / "validation" / "summary.json"
        traffic = folder / "communication.json"
        site_scores = _site_files(folder, "validation.json")
        return cls(
            folder=folder,
            plans=Plans.load(folder / "plans.json", fix=_COPY),
            recipe=Recipe.load(folder / "recipe.json", fix=_COPY),
            manifest=manifest,
            run=_mapping(folder / "run.json"),
            records=_records(folder / "progress.jsonl"),
            traffic=_mapping(traffic, "rounds")["rounds"] if traffic.is_file() else (),
            summary=_mapping(summary, "sites", "dice", "rule") if summary.is_file() else None,
            execution={path.stem: Execution.load(path) for path in sorted((folder / "execution").glob("[!.]*.json"))},
            site_scores=site_scores,
            shared_scores=_site_files(folder, "validation_shared.json") if manifest.personal else site_scores,
        )

    @property
    def names(self) -> tuple[str, str, str]:
        """``RECIPE__PLANS__main``, ``PROTOCOL__STRATEGY__seedN``, ``fold_K``."""
        *_, configuration, run, fold = self.folder.resolve().parts
        return configuration, run, fold

    @property
    def exchanges(self) -> bool:
        """Whether several sites exchange updates under its protocol."""
        return self.run["protocol"] in ("federated", "leave_one_site_out")


def checked(path: Path, make: Callable[[], T]) -> T:
    """What ``make`` makes of the records in ``path``.

    Raises:
        FedsamError: they have another form than training gives them.
    """
    try:
        return make()
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise FedsamError(
            "a record of the training has another form than expected",
            path=path,
            found=f"{type(error).__name__}: {error}",
            expected="the file as fedsam_train_federated writes it (docs/formats.md)",
            fix=_COPY,
        ) from error


def _mapping(path: Path, *keys: str) -> Mapping[str, Any]:
    content = read_json(path, fix=_COPY)
    missing = [key for key in keys if key not in content] if isinstance(content, dict) else list(keys)
    if missing or not isinstance(content, dict):
        raise FedsamError(
            "a record of the training lacks something",
            path=path,
            found=f"no {', '.join(missing)}" if isinstance(content, dict) else type(content).__name__,
            expected="an object, as fedsam_train_federated writes it",
            fix=_COPY,
        )
    return content


def _site_files(folder: Path, name: str) -> list[Mapping[str, Any]]:
    return [_mapping(path, "cases") for path in sorted(folder.glob(f"sites/*/{name}"))]


def _records(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise FedsamError(
                "a line of the progress file is not JSON",
                path=path,
                found=f"line {number}: {error}",
                expected="one JSON object a line",
                fix="delete that line",
            ) from error
        records.append(record)
    return records
