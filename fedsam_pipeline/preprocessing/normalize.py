"""Intensity normalization, as nnU-Net does it (Isensee et al., Nature Methods 2021), one scheme a channel."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.preprocessing.crop import nonzero_mask
from fedsam_pipeline.specs.plans import ChannelPlan

MIN_STD = 1e-8
"""a constant image is divided by this: it becomes zero, not infinite"""

BLOCK = 1 << 20
"""values that are converted to float64 at a time"""


def mean_and_std(values: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and population standard deviation in float64, in two passes over blocks, so that no float64 copy of the volume is made.

    Raises:
        ValueError: no values.
    """
    flat = np.ravel(values)
    if not flat.size:
        raise ValueError("mean and standard deviation need at least one value")
    blocks = range(0, flat.size, BLOCK)
    mean = sum(float(flat[i : i + BLOCK].sum(dtype=np.float64)) for i in blocks) / flat.size
    squares = sum(float(np.square(flat[i : i + BLOCK].astype(np.float64) - mean).sum()) for i in blocks)
    return mean, float(np.sqrt(squares / flat.size))


def normalize(image: NDArray[np.float32], channels: Sequence[ChannelPlan]) -> NDArray[np.float32]:
    """Normalizes each channel by its plan.

    Args:
        image: (C, Z, Y, X), cropped to its non-zero box, at its own spacing.
        channels: the plan of each channel.

    Returns:
        (C, Z, Y, X) float32, unitless; the input is left alone. Under ``zscore_nonzero`` voxels outside the non-zero mask are 0.

    Raises:
        ValueError: the numbers of channels differ.
    """
    if len(image) != len(channels):
        raise ValueError(f"an image of {len(image)} channels for a plan of {len(channels)}")
    result = np.array(image, dtype=np.float32)
    mask = nonzero_mask(image) if any(channel.scheme == "zscore_nonzero" for channel in channels) else None
    for values, plan in zip(result, channels, strict=True):
        if plan.scheme == "ct":
            assert plan.mean is not None and plan.std is not None  # ChannelPlan refuses ct without its numbers
            np.clip(values, plan.clip_low, plan.clip_high, out=values)
            _standardize(values, plan.mean, plan.std)
        elif mask is not None and plan.scheme == "zscore_nonzero":
            if mask.any():
                _standardize(values, *mean_and_std(values[mask]))
            values[~mask] = 0
        else:
            _standardize(values, *mean_and_std(values))
    return result


def _standardize(values: NDArray[np.float32], mean: float, std: float) -> None:
    """In place."""
    values -= np.float32(mean)
    values /= np.float32(max(std, MIN_STD))
