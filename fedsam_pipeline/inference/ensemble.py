"""Several trained folds, one answer: the mean of their class probabilities."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.preprocessing.slabs import SliceableVolume


def predict_ensemble(
    predictors: Sequence[Predictor], image: SliceableVolume, on_progress: Callable[[float], object] | None = None
) -> NDArray[np.float32]:
    """Class scores of one preprocessed volume (C, S, H, W), whose arg max is the answer.

    Args:
        predictors: one for each fold.
        image: the volume.
        on_progress: as in :meth:`Predictor.predict_case`; the shares of all folds add up to one.

    Returns:
        (K, S, H, W) float32: logits of a single predictor, mean softmax probabilities of several. Not the logits are averaged, so that a
        fold with large margins does not outvote the others.

    Raises:
        ValueError: no predictor.
    """
    if not predictors:
        raise ValueError("an ensemble needs a predictor")

    def part(share: float) -> None:
        if on_progress is not None:
            on_progress(share / len(predictors))

    if len(predictors) == 1:
        return predictors[0].predict_case(image, part)
    total: NDArray[np.float32] | None = None
    for predictor in predictors:
        probabilities = _softmax_in_place(predictor.predict_case(image, part))
        probabilities /= len(predictors)
        if total is None:
            total = probabilities
        else:
            total += probabilities
    assert total is not None
    return total


def _softmax_in_place(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over axis 0, slice by slice along axis 1, so that nothing of the size of the volume is added."""
    for index in range(logits.shape[1]):
        plane = logits[:, index]
        plane -= plane.max(axis=0)
        np.exp(plane, out=plane)
        plane /= plane.sum(axis=0)
    return logits
