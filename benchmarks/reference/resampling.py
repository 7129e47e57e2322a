"""Resampling with scikit-image as nnU-Net uses it (Isensee et al., Nature Methods 2021), written plainly: float64, whole volumes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from skimage.transform import resize


def resample_image(image: NDArray[np.float32], size: Sequence[int], *, coarse_axis: int | None = None) -> NDArray[np.float32]:
    """(C, Z, Y, X) to (C, *size), cubic splines; slice by slice, and then the nearest slice, where there is a coarse axis."""
    return np.stack([_resized(channel, size, 3, coarse_axis) for channel in image]).astype(np.float32)


def resample_labels(labels: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """(Z, Y, X) to ``size``: the mask of every class is interpolated linearly, and the largest share wins."""
    values = np.unique(labels)
    shares = np.stack([_resized(labels == value, size, 1, None) for value in values])
    return np.asarray(values[shares.argmax(axis=0)])


def export(logits: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.uint8]:
    """Logits (K, S, H, W) to a mask of ``size``: all classes are resampled linearly, softmax of all of them, arg max."""
    resampled = np.stack([_resized(scores, size, 1, None) for scores in logits]).astype(np.float32)
    exponential = np.exp(resampled - resampled.max(axis=0))
    probabilities = exponential / exponential.sum(axis=0)
    return np.asarray(probabilities.argmax(axis=0), dtype=np.uint8)


def _resized(volume: NDArray[Any], size: Sequence[int], order: int, coarse_axis: int | None) -> NDArray[np.float64]:
    volume = volume.astype(np.float64)
    if coarse_axis is None:
        return _resize(volume, size, order)
    plane = [length for axis, length in enumerate(size) if axis != coarse_axis]
    slices = np.stack([_resize(each, plane, order) for each in np.moveaxis(volume, coarse_axis, 0)], axis=coarse_axis)
    centres = [(np.arange(new) + 0.5) * (old / new) - 0.5 for old, new in zip(slices.shape, size, strict=True)]
    where = np.stack(np.meshgrid(*centres, indexing="ij"))
    return np.asarray(map_coordinates(slices, where, order=0, mode="nearest"), dtype=np.float64)


def _resize(array: NDArray[np.float64], size: Sequence[int], order: int) -> NDArray[np.float64]:
    resized = resize(array, tuple(size), order, mode="edge", clip=True, anti_aliasing=False)  # type: ignore[no-untyped-call]
    return np.asarray(resized, dtype=np.float64)
