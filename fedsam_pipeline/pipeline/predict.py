"""``fedsam_predict``: images in, masks in the images' geometry out, from a trained model alone."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fedsam_pipeline.dataset.volume import Volume, read_image, write_labels
from fedsam_pipeline.errors import EXIT_DONE, EXIT_SOME_FAILED, FedsamError
from fedsam_pipeline.inference.ensemble import stream_ensemble
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.inputs import InputCase, file_ending, find_cases
from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.inference.trained import TRAIN_FIX, TRAINED_MARKER, choose_run, find_folds
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.model.bundle import LoadedModel, load_bundle
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.model.trained_files import PLANS_FILE
from fedsam_pipeline.paths import choose_dataset, data_folders
from fedsam_pipeline.preprocessing.preprocess import preprocess_image
from fedsam_pipeline.specs.plans import Plans

log = logging.getLogger(__name__)


def predict(
    source: Path,
    target: Path,
    *,
    dataset: str | None = None,
    model: Path | None = None,
    folds: Sequence[str] | None = None,
    device: str = "auto",
    test_time_augmentation: bool = True,
) -> int:
    """Predicts every image of ``source`` and writes its mask.

    Args:
        source: folder of images (nnU-Net's names, or plain files for a model of one channel), or one image.
        target: folder of the masks, or the one mask.
        dataset: number or name; ``None`` is the only trained one.
        model: trained run or fold folder; with it ``dataset`` is not needed.
        folds: fold names; ``None`` is all trained ones.
        device: ``auto``, ``cpu`` or ``cuda``.
        test_time_augmentation: average over mirrored images, along the axes that training mirrored.

    Returns:
        0, or 1 where some cases of a folder failed: they are named, the others are written.

    Raises:
        FedsamError: the model or the input is missing or does not fit, the output folder cannot be written to, or the only image failed.
    """
    fold_folders = choose_folds(dataset, model, folds)
    plans = common_plans(fold_folders)
    cases = find_cases(source, target, [channel.name for channel in plans.channels])
    folder = target.parent if file_ending(target) is not None else target
    with log_file(folder / "logs", "fedsam_predict") as log_path, logging_redirect_tqdm():
        chosen = choose_device(device)
        log.info("%d case(s), %d fold(s), on %s; log: %s", len(cases), len(fold_folders), chosen, log_path)
        models: list[LoadedModel] = [load_bundle(fold, chosen) for fold in fold_folders]
        mirror_axes = plans.training.mirror_axes if test_time_augmentation else ()
        predictors = [Predictor(each.model, plans, chosen, autocast_dtype(chosen), mirror_axes=mirror_axes) for each in models]
        failures = _predict_all(cases, predictors, plans)
    if not failures:
        print(f"{len(cases)} mask(s) written to {target}")
        return EXIT_DONE
    print(f"{len(failures)} of {len(cases)} cases failed, the others are written to {target}")
    for case, reason in failures.items():
        print(f"  {case}: {reason}")
    return EXIT_SOME_FAILED


def choose_folds(dataset: str | None, model: Path | None, folds: Sequence[str] | None) -> list[Path]:
    """The fold folders to predict with; says on the first line what it chose where the user did not.

    Raises:
        FedsamError: as :func:`predict`.
    """
    if model is not None:
        return find_folds(model, folds)
    folders = data_folders()
    dataset_folder = choose_dataset(folders.results, dataset, marker=TRAINED_MARKER, stage="trained", fix=TRAIN_FIX)
    run = choose_run(dataset_folder)
    print(f"predicting with {dataset_folder.name}: {run.relative_to(dataset_folder)}")
    notice = folders.notice()
    if notice:
        print(notice)
    return find_folds(run, folds)


def common_plans(fold_folders: Sequence[Path]) -> Plans:
    """The plan that all folds were trained with.

    Raises:
        FedsamError: a plan is missing or broken, or the folds disagree.
    """
    plans = [Plans.load(folder / PLANS_FILE, fix="copy the whole model folder again") for folder in fold_folders]
    for folder, other in zip(fold_folders, plans, strict=True):
        if other.sha256() != plans[0].sha256():
            raise FedsamError(
                "the folds were trained with different plans",
                path=folder / PLANS_FILE,
                found=other.sha256(),
                expected=f"{plans[0].sha256()}, as in {fold_folders[0].name}",
                fix="predict with the folds of one plan: -f",
            )
    return plans[0]


def predict_volume(
    volume: Volume,
    predictors: Sequence[Predictor],
    plans: Plans,
    folder: Path,
    *,
    case: str = "case",
    on_progress: Callable[[float], object] | None = None,
) -> NDArray[np.unsignedinteger]:
    """The mask of one image as read from its files: preprocess, predict, back to the image's own grid.

    Args:
        volume: the image, (C, Z, Y, X), in any orientation.
        predictors: one for each fold.
        plans: the plan they were trained with.
        folder: on the disk for the sums of an ensemble.
        case: its name, for messages.
        on_progress: as in :func:`stream_ensemble`.

    Returns:
        (Z, Y, X) in the image's own grid and orientation, uint8 (uint16 beyond 255 classes).
    """
    image, properties = preprocess_image(volume, plans, case=case)
    return export_stream(stream_ensemble(predictors, image, folder, on_progress), properties, plans)


def _predict_all(cases: Sequence[InputCase], predictors: Sequence[Predictor], plans: Plans) -> dict[str, str]:
    """Case -> why it failed. The error of an only case is raised."""
    failures: dict[str, str] = {}
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
    with tqdm(total=len(cases), desc="predicting", disable=None, bar_format=layout) as bar:
        for number, case in enumerate(cases, start=1):
            started = time.perf_counter()
            try:
                volume = read_image(case.channels)
                mask = predict_volume(volume, predictors, plans, case.output.parent, case=case.case, on_progress=bar.update)
                write_labels(case.output, mask, volume.geometry, like=case.channels[0])
            except Exception as error:
                if len(cases) == 1:
                    raise
                failures[case.case] = str(error)
                log.error("[%d/%d] %s FAILED: %s", number, len(cases), case.case, error, exc_info=not isinstance(error, FedsamError))
            else:
                log.info("[%d/%d] %s: %.1f s -> %s", number, len(cases), case.case, time.perf_counter() - started, case.output)
            bar.update(number - bar.n)  # also after a failure half-way, and free of rounding
    return failures
