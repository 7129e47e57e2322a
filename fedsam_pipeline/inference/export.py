"""From class scores at target spacing to a mask in the scanner's own grid."""

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import from_canonical
from fedsam_pipeline.preprocessing.resample import resample
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import Plans

SCORE_ORDER = 1
"""class scores are interpolated linearly"""


def export_labels(scores: NDArray[np.float32], properties: CaseProperties, plans: Plans) -> NDArray[np.unsignedinteger]:
    """Undoes preprocessing: slice axis back, resample to the crop, arg max, paste into the volume, original axes.

    Classes are resampled one after the other and compared with the best so far, so that beside the scores themselves two float32 volumes of
    the native crop (the best score, the class at hand) and the masks are in memory, whatever the number of classes. A tie goes to the
    smaller class. Voxels outside the crop are background.

    Args:
        scores: (K, S, H, W), logits or probabilities.
        properties: what preprocessing did to the case.
        plans: the plan.

    Returns:
        (Z, Y, X) on the image's own grid (not canonical), class numbers; uint8, uint16 for more than 256 classes.

    Raises:
        ValueError: the scores have another shape than the preprocessed case, or another number of classes than the plan.
    """
    expected = (plans.num_classes, *properties.stored_size)
    if scores.shape != expected:
        raise ValueError(f"scores of shape {scores.shape} do not fit a case of shape {expected}")
    dtype = np.uint8 if plans.num_classes <= 256 else np.uint16
    winner = np.zeros(properties.crop_size, dtype=dtype)
    best: NDArray[np.float32] | None = None
    for label, score in enumerate(scores):
        volume = np.moveaxis(score, 0, properties.slice_axis)
        native = resample(volume[None], properties.crop_size, SCORE_ORDER)[0]
        if best is None:
            best = np.array(native)  # a copy: without resampling, native is a view of the scores
            continue
        better = native > best
        winner[better] = label
        np.maximum(best, native, out=best)
    canonical = np.zeros(properties.canonical_size, dtype=dtype)
    inside = tuple(slice(start, start + size) for start, size in zip(properties.crop_start, properties.crop_size, strict=True))
    canonical[inside] = winner
    original = Geometry(
        properties.original_size, properties.original_spacing, properties.original_origin, tuple(properties.original_direction)
    )
    return np.ascontiguousarray(from_canonical(canonical, original), dtype=dtype)
