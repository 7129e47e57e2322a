"""Cropping to the non-zero voxels: scanners and skull stripping leave empty space that nobody needs to store."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Triple = tuple[int, int, int]


def nonzero_box(image: NDArray[np.float32]) -> tuple[Triple, Triple]:
    """The smallest box that holds every voxel that is not zero in any channel.

    Args:
        image: (C, Z, Y, X).

    Returns:
        Start and size, both (z, y, x) in voxels. The whole volume where every voxel is zero.
    """
    occupied = _occupied(image)
    start, size = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hits = np.flatnonzero(occupied.any(axis=others))
        first, last = (int(hits[0]), int(hits[-1])) if hits.size else (0, occupied.shape[axis] - 1)
        start.append(first)
        size.append(last - first + 1)
    return (start[0], start[1], start[2]), (size[0], size[1], size[2])


def crop(array: NDArray[Any], start: Triple, size: Triple) -> NDArray[Any]:
    """The box ``start``, ``size`` of the last three axes; a view."""
    z, y, x = (slice(first, first + length) for first, length in zip(start, size, strict=True))
    return array[..., z, y, x]


def nonzero_mask(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Voxels that are not zero in any channel, with enclosed holes filled (nnU-Net's non-zero mask). (C, Z, Y, X) to (Z, Y, X)."""
    return np.asarray(ndimage.binary_fill_holes(_occupied(image)), dtype=np.bool_)


def _occupied(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    occupied = image[0] != 0
    for channel in image[1:]:  # one mask in memory, however many channels
        occupied |= channel != 0
    return np.asarray(occupied, dtype=np.bool_)
