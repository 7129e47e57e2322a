"""Worst and median cases of a run as pictures: predicted anew from the preprocessed store, on the grid of the validation scores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.label_scheme import read_label_scheme
from fedsam_pipeline.files import read_json
from fedsam_pipeline.inference.ensemble import stream_ensemble
from fedsam_pipeline.inference.view_predictors import view_predictors
from fedsam_pipeline.model.bundle import FoldModels
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.model.trained_files import BUNDLE_FILE
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.report.case_scores import CaseDice, choose_cases
from fedsam_pipeline.report.overlay import HOW_TO_READ, overlay_png
from fedsam_pipeline.report.run_files import RunFiles
from fedsam_pipeline.report.score_sections import CasePicture
from fedsam_pipeline.specs.plans import Plans


def draw_cases(
    files: RunFiles, cases: Sequence[CaseDice], number: int, preprocessed: Path, device: str
) -> tuple[list[CasePicture], list[str]]:
    """Pictures of the ``number`` worst cases and of as many around the median.

    Args:
        files: of the run.
        cases: its scored cases, of the model that all sites share.
        number: of either kind.
        preprocessed: folder of the preprocessed dataset; it need not be there.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The pictures, and what has to be said: how they were made, and which cases are not shown and why.

    Raises:
        FedsamError: the model or a stored case is broken, or the base weights are not in the cache.
    """
    if not (files.folder / BUNDLE_FILE).is_file():
        return [], ["No case is shown: the training is not done."]
    store = CaseStore(store_folder(preprocessed, files.plans))
    known, notes = set(store.cases()), []
    groups = list(read_label_scheme(read_json(files.folder / "dataset.json"), files.folder / "dataset.json").scored.values())
    tables = {row["case"]: row["tp_fp_fn"] for document in files.shared_scores for row in document["cases"]}
    chosen = []
    for words, scores in choose_cases(cases, number):
        if scores.case not in known:
            notes.append(f"{scores.case} ({words}) is not shown: its preprocessed image is not on this machine.")
        elif not _same_reference(np.asarray(store.open(scores.case).labels[:]), tables[scores.case], groups):
            notes.append(f"{scores.case} ({words}) is not shown: its reference mask is another one than was scored.")
        else:
            chosen.append((words, scores))
    if not chosen:
        return [], notes or ["No case is shown: none has a Dice."]
    model_device = choose_device(device)
    models = FoldModels([files.folder], model_device)
    views = view_predictors(models.model, models.plans, models.configuration, model_device, autocast_dtype(model_device))
    pictures = []
    for words, scored in chosen:
        stored = store.open(scored.case)
        image = stored.image if len(views) == 1 else stored.image[:]  # the store is made for slices along its first axis
        prediction = np.concatenate([scores.argmax(axis=1) for scores in stream_ensemble(views, image, files.folder)])
        png = _png(np.asarray(stored.image[0]), np.asarray(stored.labels[:]), prediction, files.plans)
        pictures.append(CasePicture(words, scored, png))
    notes.insert(
        0,
        f"Channel {files.plans.channels[0].name}, at the plan's spacing, predicted anew by the final model without test-time augmentation. "
        + HOW_TO_READ,
    )
    return pictures, notes


def _same_reference(labels: NDArray[np.integer], table: Sequence[Sequence[int] | None], groups: Sequence[Sequence[int]]) -> bool:
    """Whether the stored mask has as many voxels of every scored class as the scored one had: TP and FN together."""
    return all(
        row is None or row[0] + row[2] == np.count_nonzero(np.isin(labels, values)) for row, values in zip(table, groups, strict=True)
    )


def _png(image: NDArray[np.floating], reference: NDArray[np.integer], prediction: NDArray[np.integer], plans: Plans) -> bytes:
    """Arrays (S, H, W) of the store, cut along S."""
    first, (second, third) = plans.slice_axis, (axis for axis in range(3) if axis != plans.slice_axis)
    spacing = plans.target_spacing[first], plans.target_spacing[second], plans.target_spacing[third]
    return overlay_png(image, reference, prediction, class_names=plans.foreground_names, spacing=spacing, upright=first != 0)
