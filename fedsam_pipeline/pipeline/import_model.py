"""``fedsam_import_model``: a bundle from another machine becomes a trained run of this one."""

from dataclasses import dataclass
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_folder
from fedsam_pipeline.inference.label_names import label_content
from fedsam_pipeline.inference.trained import common_plans
from fedsam_pipeline.model.bundle_check import check_fold
from fedsam_pipeline.model.bundle_zip import GET_AGAIN, open_bundle
from fedsam_pipeline.model.registry import BASE_MODELS
from fedsam_pipeline.model.weights import cache_folder
from fedsam_pipeline.paths import data_folders
from fedsam_pipeline.pipeline.coverage_file import model_coverage
from fedsam_pipeline.pipeline.find_postprocessing import read_postprocessing
from fedsam_pipeline.specs.bundle_index import INDEX_FILE, POSTPROCESSING_FILE, TRAINING_FILE, BundleIndex
from fedsam_pipeline.specs.training_record import TrainingRecord


@dataclass(frozen=True)
class ImportedModel:
    """What was installed.

    Attributes:
        folder: the run's folder.
        index: of the bundle.
    """

    folder: Path
    index: BundleIndex

    @property
    def needs(self) -> str | None:
        """The command that fetches the base weights, where they are not in the cache."""
        weights = self.index.base_weights
        if weights is None or (cache_folder() / weights.file_name).is_file():
            return None
        return f"fedsam_download_weights {self.index.base_model}"


def import_model(source: Path, *, target: Path | None = None) -> ImportedModel:
    """Unpacks a bundle: everything is checked before anything appears under its name.

    Args:
        source: the zip.
        target: the run's new folder; ``None``: where training would have put it, below the results folder.

    Raises:
        FedsamError: the zip is no bundle, is unsafe, damaged, incomplete or of another schema version, its model does not fit this version,
            or the folder exists. Nothing is left behind then.
    """
    with open_bundle(source) as bundle:
        index = bundle.index
        _refuse_other_base(source, index)
        folder = target or data_folders().results / index.dataset_name / index.configuration / index.run
        with atomic_folder(folder) as staging:
            bundle.extract(staging)
            folds = [staging / f"fold_{fold}" for fold in index.folds]
            _check_contents(source, index, folds)
            index.save(staging / INDEX_FILE)
    return ImportedModel(folder, index)


def _refuse_other_base(source: Path, index: BundleIndex) -> None:
    """Before anything is unpacked: whether this version knows the base weights at all."""
    spec = BASE_MODELS.get(index.base_model)
    if spec is None:
        found = f"{index.base_model}, made with fedsam-pipeline {index.made_with}"
        expected = f"one of {', '.join(sorted(BASE_MODELS))}"
    else:
        stated = "random" if index.base_weights is None else index.base_weights.file_sha256
        if stated == spec.weights_sha256:
            return
        found, expected = f"{index.base_model} with SHA-256 {stated}, made with fedsam-pipeline {index.made_with}", spec.weights_sha256
    raise FedsamError(
        "the bundle needs base weights that this version of fedsam-pipeline does not know",
        path=source,
        found=found,
        expected=expected,
        fix="install the version of fedsam-pipeline that made it",
    )


def _check_contents(source: Path, index: BundleIndex, folds: list[Path]) -> None:
    """Errors name the bundle, because the unpacked files are gone when they are read."""
    try:
        for folder in folds:
            label_content(folder, check_fold(folder, fix=GET_AGAIN).plans)
            if (folder / TRAINING_FILE).is_file():
                TrainingRecord.load(folder / TRAINING_FILE, fix=GET_AGAIN)
        plans = common_plans(folds)
        model_coverage(folds, plans, fix=GET_AGAIN)
        if (run := folds[0].parent).joinpath(POSTPROCESSING_FILE).is_file():
            read_postprocessing(run / POSTPROCESSING_FILE, plans, fix=GET_AGAIN)
    except FedsamError as error:
        raise FedsamError(
            f"the bundle does not fit this version of fedsam-pipeline, or does not hang together: {error.what}",
            path=f"{source}, {_within(error.path, folds)}",
            found=error.found,
            expected=error.expected,
            fix=f"use the version that made it, {index.made_with}; or {GET_AGAIN}",
        ) from error
    stated = (index.dataset_name, index.base_model)
    if (plans.dataset_name, plans.base_model) != stated:
        raise FedsamError(
            "the index of a bundle does not fit its plan",
            path=source,
            found=", ".join((plans.dataset_name, plans.base_model)),
            expected=", ".join(stated),
            fix=GET_AGAIN,
        )


def _within(path: str | None, folds: list[Path]) -> str:
    """A path below the temporary folder as it stands in the zip."""
    if path is None or not Path(path).is_relative_to(folds[0].parent):
        return "its model"
    return Path(path).relative_to(folds[0].parent).as_posix()
