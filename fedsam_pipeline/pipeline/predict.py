"""``fedsam_predict``: images in, masks in the images' geometry out, from a trained model alone."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from fedsam_pipeline.errors import EXIT_DONE, EXIT_SOME_FAILED, FedsamError
from fedsam_pipeline.inference.ensemble import FoldPredictors
from fedsam_pipeline.inference.inputs import InputCase, file_ending, find_cases
from fedsam_pipeline.inference.probabilities import probabilities_path
from fedsam_pipeline.inference.record import RECORD_FILE, PredictionRecord
from fedsam_pipeline.inference.trained import TRAIN_FIX, TRAINED_MARKER, choose_run, find_folds
from fedsam_pipeline.inference.view_predictors import view_predictors
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.model.bundle import FoldModels
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.model.trained_files import BUNDLE_FILE, PLANS_FILE, RETRAIN, BundleInfo
from fedsam_pipeline.paths import choose_dataset, data_folders
from fedsam_pipeline.pipeline.predict_cases import CasePredictor
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
    mirror_axes: Sequence[int] | None = None,
    step_size: float | None = None,
    save_probabilities: bool = False,
    continue_prediction: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    max_memory: int | None = None,
) -> int:
    """Predicts every image of ``source`` and writes its mask.

    Args:
        source: folder of images (nnU-Net's names, or plain files for a model of one channel), or one image.
        target: folder of the masks, or the one mask.
        dataset: number or name; ``None`` is the only trained one.
        model: trained run or fold folder; with it ``dataset`` is not needed.
        folds: fold names; ``None`` is all trained ones.
        device: ``auto``, ``cpu`` or ``cuda``.
        test_time_augmentation: average over mirrored images.
        mirror_axes: of (slice, height, width); ``None``: those that training mirrored.
        step_size: of windows and slabs, as a share of their length; ``None``: as planned.
        save_probabilities: write them beside the masks, for ``fedsam_ensemble``.
        continue_prediction: leave out cases whose files are there, made by the same models in the same way.
        num_parts, part_id: predict every ``num_parts``-th case, from number ``part_id`` on, so that several processes share the work.
        max_memory: bytes of main memory to stay within where possible, at the cost of time; ``None``: no limit.

    Returns:
        0, or 1 where some cases of a folder failed: they are named, the others are written.

    Raises:
        FedsamError: the model or the input is missing or does not fit, the output folder cannot be written to, what is there was made in
            another way, or the only image failed.
    """
    if not 0 <= part_id < num_parts:
        raise FedsamError("there is no such part", found=f"-part_id {part_id} of {num_parts}", expected=f"0 to {num_parts - 1}")
    fold_folders = choose_folds(dataset, model, folds)
    plans = common_plans(fold_folders)
    all_cases = find_cases(source, target, [channel.name for channel in plans.channels])
    folder = target.parent if file_ending(target) is not None else target
    if mirror_axes is None:
        mirror_axes = plans.training.mirror_axes
    record = PredictionRecord(
        plan_sha256=plans.sha256(),
        adapters_sha256=tuple(BundleInfo.load(fold / BUNDLE_FILE, fix=RETRAIN).adapter_sha256 for fold in fold_folders),
        mirror_axes=tuple(sorted(set(mirror_axes))) if test_time_augmentation else (),
        step_size=1 - plans.window_overlap if step_size is None else step_size,
    )
    cases = all_cases[part_id::num_parts]
    if continue_prediction:
        if folder != target:
            raise FedsamError(
                "nothing says how a single mask was predicted",
                path=target,
                found="--continue_prediction",
                expected="a folder for -o",
                fix="leave --continue_prediction out",
            )
        record.check(folder / RECORD_FILE, masks=any(case.output.is_file() for case in all_cases))
        cases = [case for case in cases if not _is_done(case, save_probabilities)]
        print(f"{len(all_cases[part_id::num_parts]) - len(cases)} case(s) were done before, {len(cases)} to do")
    if not cases:
        print("nothing to predict")
        return EXIT_DONE
    with log_file(folder / "logs", "fedsam_predict") as log_path, logging_redirect_tqdm():
        if folder == target:
            if not record.made(folder / RECORD_FILE):
                _remove_masks(all_cases)
            record.save(folder / RECORD_FILE)
        chosen = choose_device(device)
        log.info("%d case(s), %d fold(s), on %s; log: %s", len(cases), len(fold_folders), chosen, log_path)
        models = FoldModels(fold_folders, chosen)
        views = view_predictors(
            models.model,
            plans,
            models.configuration,
            chosen,
            autocast_dtype(chosen),
            mirror_axes=record.mirror_axes,
            step_size=record.step_size,
        )
        runner = CasePredictor(FoldPredictors(models, *views), plans, save_probabilities=save_probabilities, max_memory=max_memory)
        failures = runner.run(cases)
    return report_outcome(failures, len(cases), target)


def report_outcome(failures: Mapping[str, str], number: int, target: Path) -> int:
    """Prints which of the cases failed and why; returns the exit code."""
    if not failures:
        print(f"{number} mask(s) written to {target}")
        return EXIT_DONE
    print(f"{len(failures)} of {number} cases failed, the others are written to {target}")
    for case, reason in failures.items():
        print(f"  {case}: {reason}")
    return EXIT_SOME_FAILED


def _remove_masks(cases: Sequence[InputCase]) -> None:
    """What another prediction left of these cases: beside the new record it would pass for its work."""
    for case in cases:
        for path in (case.output, probabilities_path(case.output, case.case)):
            path.unlink(missing_ok=True)


def _is_done(case: InputCase, save_probabilities: bool) -> bool:
    """The mask is written last; each file appears when it is complete."""
    return case.output.is_file() and (not save_probabilities or probabilities_path(case.output, case.case).is_file())


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
