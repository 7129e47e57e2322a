"""Several trained folds and views, one answer: the mean of their class probabilities."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedsam_pipeline.inference.agreement import CaseAgreement, winner
from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.inference.prompts import VolumePrompt
from fedsam_pipeline.inference.score_map import ScoreMap
from fedsam_pipeline.model.bundle import FoldModels
from fedsam_pipeline.preprocessing.slabs import SliceableVolume
from fedsam_pipeline.preprocessing.views import AS_STORED


class Predictors(Protocol):
    """The members of an ensemble, one after the other: a list, or folds that take turns in one model."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Predictor]:
        """Each predictor is used before the next one is asked for, and not afterwards. The last one's slices are the stored ones."""
        ...


class FoldPredictors:
    """Folds that take turns in one model.

    Args:
        models: the folds.
        views: predictors of ``models.model``, one a view (``view_predictors``); a single predictor where there is one view.
    """

    def __init__(self, models: FoldModels, *views: Predictor) -> None:
        self._models = models
        self.views = views

    @property
    def num_folds(self) -> int:
        """Each goes through all views."""
        return len(self._models)

    def __len__(self) -> int:
        return len(self._models) * len(self.views)

    def __iter__(self) -> Iterator[Predictor]:
        for fold in range(len(self._models)):
            self._models.use(fold)
            yield from self.views


def gives_probabilities(predictors: Predictors) -> bool:
    """Whether ``stream_ensemble`` yields probabilities; else logits."""
    return len(predictors) > 1


def stream_ensemble(
    predictors: Predictors,
    image: SliceableVolume,
    folder: Path,
    on_progress: Callable[[float], object] | None = None,
    prompts: Sequence[VolumePrompt] = (),
    *,
    agreement: CaseAgreement | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Class scores of one preprocessed volume (C, S, H, W), whose arg max is the answer; slices in their order.

    The volume goes through one member after the other, each along the axis of its view. The sum of the probabilities of all members but
    the last is on disk, in half precision (``ScoreMap``); in memory is what ``Predictor.stream_case`` states, and that much again of the
    sum. Where agreement is asked for, the label map of the stored view of every fold but the last is on disk, too: 2 bytes a voxel.

    Args:
        predictors: one for each fold and view.
        image: the volume, as stored.
        folder: on the disk for the sum; not used by a single predictor.
        on_progress: as in :meth:`Predictor.stream_case`; the shares of all members add up to one.
        prompts: as in :meth:`Predictor.stream_case`.
        agreement: is given what each fold and each mirroring says; complete once all slices have come.

    Yields:
        (n, K, H, W) float32 of the next n slices: logits of a single predictor, mean softmax probabilities of several. Not the logits are
        averaged, so that a fold with large margins does not outvote the others. The array is overwritten once the next one is asked for.

    Raises:
        ValueError: no predictor, or the last one is of another view than the stored one.
        FedsamError: the disk lacks the space.
    """
    if not len(predictors):
        raise ValueError("an ensemble needs a predictor")
    share = 1 / len(predictors)

    def part_done(part: float) -> None:
        if on_progress is not None:
            on_progress(part * share)

    mirrors, folds = (agreement.mirrors, agreement.folds) if agreement is not None else (None, None)
    if not gives_probabilities(predictors):
        for predictor in predictors:
            _check_last(predictor)
            yield from predictor.stream_case(image, part_done, prompts, mirrors=mirrors)
        return
    total: ScoreMap | None = None
    voted: list[ScoreMap] = []
    cubes = False
    try:
        for number, predictor in enumerate(predictors, start=1):
            num_slices, height, width = image.shape[1:]
            cubes = cubes or predictor.order != AS_STORED  # of several views the stored one comes last
            if total is None:
                total = ScoreMap((num_slices, predictor.plans.num_classes, height, width), folder, cubes=cubes)
            votes = folds if predictor.order == AS_STORED else None  # a fold is its stored view: the others would be voters of another kind
            if votes is not None and number < len(predictors):
                voted.append(ScoreMap((num_slices, 1, height, width), folder))
            if number == len(predictors):
                _check_last(predictor)
            first = 0
            of_stored = mirrors if predictor.order == AS_STORED else None  # other views are mirrored along other axes
            for logits in predictor.stream_case(image, part_done, prompts, mirrors=of_stored):
                if votes is not None:
                    labels = winner(torch.from_numpy(logits))
                    if number < len(predictors):
                        voted[-1].add(first, labels[:, None].float().numpy())
                    else:
                        for at, own in enumerate(labels, start=first):
                            others = [torch.from_numpy(each.read(at, 1)[:, 0]).short() for each in voted]
                            votes.add([*others, own[None]])
                probabilities = (torch.from_numpy(logits).softmax(dim=1) * share).numpy()
                if number < len(predictors):
                    total.add(first, probabilities, predictor.order)
                else:
                    yield total.read(first, len(probabilities)) + probabilities
                first += len(probabilities)
    finally:
        for each in (total, *voted):
            if each is not None:
                each.close()


def _check_last(predictor: Predictor) -> None:
    if predictor.order != AS_STORED:
        raise ValueError("the last predictor must be of the stored view: its slices leave in their order")
