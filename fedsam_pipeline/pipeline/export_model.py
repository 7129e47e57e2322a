"""``fedsam_export_model``: the trained folds of a run as one file that another machine can install."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import json_text, read_json
from fedsam_pipeline.inference.label_names import label_content
from fedsam_pipeline.inference.trained import TRAIN_FIX, TRAINED_MARKER, choose_run, common_plans, find_folds
from fedsam_pipeline.model.bundle_check import TrainedFold, check_fold
from fedsam_pipeline.model.bundle_zip import DISTRIBUTION, licence_text, write_bundle
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.trained_files import ADAPTER_FILE, BUNDLE_FILE, MANIFEST_FILE, PLANS_FILE, RECIPE_FILE
from fedsam_pipeline.paths import choose_dataset, data_folders
from fedsam_pipeline.pipeline.find_postprocessing import read_postprocessing
from fedsam_pipeline.planning.privacy import DEFAULT_FLOOR
from fedsam_pipeline.report.model_card import model_card
from fedsam_pipeline.specs.bundle_index import (
    CARD_FILE,
    DATASET_FILE,
    INDEX_FILE,
    LICENCE_FILE,
    POSTPROCESSING_FILE,
    TRAINING_FILE,
    BundleIndex,
)
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.coverage import COVERAGE_FILE, Coverage
from fedsam_pipeline.specs.training_record import TrainingRecord

_CONFIGURATIONS = tuple(f"__{name}" for name in get_args(Configuration))
_RUN_MARKERS = ("federated__", "centralized__", "local-", "leave_one_site_out-")


def export_model(
    target: Path | None = None,
    *,
    dataset: str | None = None,
    model: Path | None = None,
    folds: Sequence[str] | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a bundle and returns its path.

    Args:
        target: the zip; ``None``: named after dataset, recipe and run, in the current folder.
        dataset: number or name; ``None`` is the only trained one.
        model: trained run or fold folder; with it ``dataset`` is not needed.
        folds: fold names; ``None`` is all trained ones.
        licence: of the trained weights, for the model card.
        overwrite: replace ``target`` where it exists.

    Raises:
        FedsamError: nothing is trained, a fold's files do not fit each other or this version, the folds are of different plans, recipes or
            base models, the run's folder does not have a run's name, or ``target`` exists.
    """
    if model is None:
        results = data_folders().results
        model = choose_run(choose_dataset(results, dataset, marker=TRAINED_MARKER, stage="trained", fix=TRAIN_FIX))
    folders = find_folds(model, folds)
    run = folders[0].resolve().parent
    trained = {folder.resolve().name.removeprefix("fold_"): check_fold(folder) for folder in folders}
    plans = common_plans(folders)
    _refuse_mixture(trained)
    configuration, run_name = run_names(run)
    name = f"{plans.dataset_name}__{configuration}__{run_name}.zip"
    path = Path(name) if target is None else target
    _check_target(path, overwrite)
    records = {fold: record for fold, each in trained.items() if (record := training_record(each.folder)) is not None}
    base = base_model_spec(plans.base_model)
    again = f"copy the whole run again, or leave {POSTPROCESSING_FILE} out"
    found = (run / POSTPROCESSING_FILE).is_file()
    postprocessing = read_postprocessing(run / POSTPROCESSING_FILE, plans, fix=again) if found else None
    steps = postprocessing.steps if postprocessing else ()
    card = model_card(trained, records, licence=licence, made_with=version(DISTRIBUTION), postprocessing=steps)
    members: dict[str, bytes | Path] = {CARD_FILE: card.encode("utf-8")}
    if postprocessing is not None:
        members[POSTPROCESSING_FILE] = _json_bytes(postprocessing.published(DEFAULT_FLOOR).to_dict())
    if base.weights is not None:
        members[LICENCE_FILE] = licence_text(base.weights.licence)
    for fold, each in trained.items():
        members |= {f"fold_{fold}/{file}": content for file, content in _fold_members(each, records.get(fold)).items()}
    write_bundle(
        path, members, dataset_name=plans.dataset_name, configuration=configuration, run=run_name, base=base, folds=sorted(trained)
    )
    return path


def run_names(run: Path) -> tuple[str, str]:
    """``RECIPE__PLANS__CONFIGURATION`` and ``PROTOCOL__STRATEGY__seedN`` of a run's folder: of an imported one as its index says.

    Raises:
        FedsamError: the folders have other names.
    """
    if (run / INDEX_FILE).is_file():
        index = BundleIndex.load(run / INDEX_FILE)
        return index.configuration, index.run
    if run.parent.name.endswith(_CONFIGURATIONS) and run.name.startswith(_RUN_MARKERS):
        return run.parent.name, run.name
    raise FedsamError(
        "this folder is not named as a run",
        path=run,
        expected="RECIPE__PLANS__CONFIGURATION/PROTOCOL__STRATEGY__seedN, as fedsam_train_federated names it",
        fix="rename the folder and the one above it",
    )


def training_record(folder: Path) -> TrainingRecord | None:
    """How a fold came about: of an imported one as its bundle says; ``None`` where nothing is known.

    Raises:
        FedsamError: a file that says it is broken.
    """
    if (folder / TRAINING_FILE).is_file():
        return TrainingRecord.load(folder / TRAINING_FILE)
    if not (folder / "run.json").is_file():
        return None
    try:
        return TrainingRecord.from_run(
            read_json(folder / "run.json"),
            train_cases=_train_cases(folder),
            traffic=_traffic(folder),
            floor=DEFAULT_FLOOR,
            path=str(folder / "run.json"),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FedsamError(
            "the records of a training cannot be read",
            path=folder,
            found=f"{type(error).__name__}: {error}",
            expected="run.json, progress.jsonl and communication.json as fedsam_train_federated writes them",
            fix="copy the whole folder again, or leave these three files out of it",
        ) from error


def _train_cases(folder: Path) -> int | None:
    """Cases of all sites together in the last round."""
    path = folder / "progress.jsonl"
    if not path.is_file():
        return None
    rounds = [record for line in path.read_text(encoding="utf-8").splitlines() if (record := json.loads(line))["event"] == "round"]
    return round(sum(site["num_examples"] for site in rounds[-1]["sites"].values())) if rounds else None


def _traffic(folder: Path) -> tuple[int, int] | None:
    """Bytes of all messages, up and down."""
    path = folder / "communication.json"
    if not path.is_file():
        return None
    sites = [site for entry in read_json(path)["rounds"] for site in entry["sites"].values()]
    up, down = (sum(site[way]["bytes_message"] for site in sites) for way in ("up", "down"))
    return up, down


def _fold_members(fold: TrainedFold, record: TrainingRecord | None) -> dict[str, bytes | Path]:
    """Documents are written anew, so that equal ones have equal bytes and nothing rides along."""
    members: dict[str, bytes | Path] = {
        ADAPTER_FILE: fold.folder / ADAPTER_FILE,
        BUNDLE_FILE: _json_bytes(fold.info.to_dict()),
        MANIFEST_FILE: _json_bytes(fold.manifest.to_dict()),
        PLANS_FILE: _json_bytes(fold.plans.to_dict()),
        RECIPE_FILE: _json_bytes(fold.recipe.to_dict()),
    }
    if (fold.folder / DATASET_FILE).is_file():
        members[DATASET_FILE] = _json_bytes(label_content(fold.folder, fold.plans))
    if record is not None:
        members[TRAINING_FILE] = _json_bytes(record.to_dict())
    if (fold.folder / COVERAGE_FILE).is_file():
        members[COVERAGE_FILE] = _json_bytes(Coverage.load(fold.folder / COVERAGE_FILE).to_dict())
    return members


def _json_bytes(value: Any) -> bytes:
    return json_text(value).encode("utf-8")


def _refuse_mixture(trained: Mapping[str, TrainedFold]) -> None:
    """Folds of one bundle differ in their cases alone. That their plans agree is checked elsewhere."""
    (first, reference), *others = trained.items()
    for fold, each in others:
        for what, here, there in (
            ("recipes", each.recipe.sha256(), reference.recipe.sha256()),
            ("base weights", each.info.base_weights_sha256, reference.info.base_weights_sha256),
            ("encoders", each.info.random_encoder, reference.info.random_encoder),
            ("configurations", each.info.configuration, reference.info.configuration),
        ):
            if here != there:
                raise FedsamError(
                    f"the folds were trained with different {what}",
                    path=each.folder,
                    found=here,
                    expected=f"{there}, as in fold {first}",
                    fix=f"leave fold {fold} out: -f",
                )


def _check_target(path: Path, overwrite: bool) -> None:
    if path.suffix != ".zip":
        raise FedsamError("a bundle is a zip", path=path, expected="a name that ends in .zip", fix=f"use -o {path}.zip, for example")
    if path.exists() and not overwrite:
        raise FedsamError("the bundle exists already", path=path, expected="a new file", fix="add --overwrite, or another name with -o")
