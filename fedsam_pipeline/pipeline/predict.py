"""``fedsam_predict``: images in, masks in the images' geometry out, from a trained model alone."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from fedsam_pipeline.errors import EXIT_DONE, EXIT_SOME_FAILED, FedsamError
from fedsam_pipeline.inference.inputs import InputCase, find_cases, is_single_image, mask_ending
from fedsam_pipeline.inference.label_names import label_content
from fedsam_pipeline.inference.patient_prompts import check_prompts
from fedsam_pipeline.inference.probabilities import probabilities_path
from fedsam_pipeline.inference.record import RECORD_FILE
from fedsam_pipeline.inference.trained import TRAIN_FIX, TRAINED_MARKER, choose_run
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.paths import choose_dataset, data_folders
from fedsam_pipeline.pipeline.coverage_file import model_coverage
from fedsam_pipeline.pipeline.mask_files import MaskFiles
from fedsam_pipeline.pipeline.predict_cases import Outputs
from fedsam_pipeline.pipeline.quality_control import QualityControl
from fedsam_pipeline.pipeline.quality_files import remove_tables, row_path, write_tables
from fedsam_pipeline.pipeline.segmenter import Segmenter
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.prompts import PromptsFile

log = logging.getLogger(__name__)


def predict(
    source: Path,
    target: Path,
    *,
    dataset: str | None = None,
    model: Path | None = None,
    folds: Sequence[str] | None = None,
    device: str = "auto",
    compiled: bool = False,
    test_time_augmentation: bool = True,
    mirror_axes: Sequence[int] | None = None,
    step_size: float | None = None,
    save_probabilities: bool = False,
    continue_prediction: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    max_memory: int | None = None,
    dicom_seg: bool = False,
    prompts: Path | None = None,
    self_prompt: bool | None = None,
    postprocessing: bool = True,
) -> int:
    """Predicts every image of ``source`` and writes its mask.

    Args:
        source: folder of images (nnU-Net's names, or plain files for a model of one channel), or one image.
        target: folder of the masks, or the one mask.
        dataset: number or name; ``None`` is the only trained one.
        model: trained run or fold folder; with it ``dataset`` is not needed.
        folds: fold names; ``None`` is all trained ones.
        device: ``auto``, ``cpu`` or ``cuda``.
        compiled: compile the image encoder; masks stay the same but for rounding.
        test_time_augmentation: average over mirrored images.
        mirror_axes: of (slice, height, width); ``None``: those that training mirrored.
        step_size: of windows and slabs, as a share of their length; ``None``: as planned.
        save_probabilities: write them beside the masks, for ``fedsam_ensemble``.
        continue_prediction: leave out cases whose files are there, made by the same models in the same way.
        num_parts, part_id: predict every ``num_parts``-th case, from number ``part_id`` on, so that several processes share the work.
        max_memory: bytes of main memory to stay within where possible, at the cost of time; ``None``: no limit.
        dicom_seg: masks of DICOM series are DICOM Segmentations, not NIfTI; ``target`` may say so by its ending.
        prompts: ``prompts.json``, boxes or points of some images; the others are predicted without.
        self_prompt: predict twice, the second time with prompts made of what the first found; ``None``: as planned.
        postprocessing: apply what was chosen for the run, if anything.

    Returns:
        0, or 1 where some cases of a folder failed: they are named, the others are written.

    Raises:
        FedsamError: the model or the input is missing or does not fit, the output folder cannot be written to, what is there was made in
            another way, the prompts do not fit, or the only image failed.
    """
    if not 0 <= part_id < num_parts:
        raise FedsamError("there is no such part", found=f"-part_id {part_id} of {num_parts}", expected=f"0 to {num_parts - 1}")
    segmenter = Segmenter(
        choose_model(dataset, model),
        folds=folds,
        device=device,
        compiled=compiled,
        test_time_augmentation=test_time_augmentation,
        mirror_axes=mirror_axes,
        step_size=step_size,
        max_memory=max_memory,
        self_prompt=self_prompt,
        postprocessing=postprocessing,
    )
    plans, coverage = segmenter.plans, model_coverage(segmenter.folds, segmenter.plans)
    all_cases = find_cases(source, target, [channel.name for channel in plans.channels], dicom_seg=dicom_seg)
    folder = target.parent if mask_ending(target) is not None else target
    marked = None if prompts is None else _read_prompts(prompts, source, all_cases, plans)
    record = segmenter.record(marked)
    masks = MaskFiles(plans, label_content(segmenter.folds[0], plans), record, all_cases, target)
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
        if continue_prediction and os.access(folder, os.W_OK):
            write_tables(folder)  # a process that was killed may not have come so far
        print("nothing to predict")
        return EXIT_DONE
    with log_file(folder / "logs", "fedsam_predict") as log_path, logging_redirect_tqdm():
        if folder == target:
            if not record.made(folder / RECORD_FILE):
                _remove_masks(all_cases)
                remove_tables(folder)
            record.save(folder / RECORD_FILE)
        masks.write_label_names()
        log.info("%d case(s), %d fold(s), on %s; log: %s", len(cases), len(segmenter.folds), segmenter.device, log_path)
        log.info("postprocessing: %s", ", ".join(map(str, record.postprocessing)) or "none")
        quality = QualityControl(plans, coverage, keeps_rows=folder == target)
        failures = segmenter.predict_cases(cases, Outputs(masks, quality, save_probabilities), prompts=marked)
        if folder == target:
            write_tables(folder)
    return report_outcome(failures, len(cases), target)


def _read_prompts(path: Path, source: Path, cases: Sequence[InputCase], plans: Plans) -> PromptsFile:
    """Checked; the file may hold more than a single image, but nothing beside the images of a folder."""
    file = PromptsFile.load(path, fix="see docs/formats.md, section 8")
    check_prompts(file, path, {case.case for case in cases}, plans, others=is_single_image(source))
    print(f"prompts for {sum(case.case in file.cases for case in cases)} of {len(cases)} image(s)")
    return file


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
        for path in (*case.possible_outputs, probabilities_path(case.output, case.case), row_path(case.output, case.case)):
            path.unlink(missing_ok=True)


def _is_done(case: InputCase, save_probabilities: bool) -> bool:
    """The mask is written last; each file appears when it is complete."""
    return case.output.is_file() and (not save_probabilities or probabilities_path(case.output, case.case).is_file())


def choose_model(dataset: str | None, model: Path | None) -> Path:
    """The run or fold folder to predict with; says on the first line what it chose where the user did not.

    Raises:
        FedsamError: as :func:`predict`.
    """
    if model is not None:
        return model
    folders = data_folders()
    dataset_folder = choose_dataset(folders.results, dataset, marker=TRAINED_MARKER, stage="trained", fix=TRAIN_FIX)
    run = choose_run(dataset_folder)
    print(f"predicting with {dataset_folder.name}: {run.relative_to(dataset_folder)}")
    notice = folders.notice()
    if notice:
        print(notice)
    return run
