"""Where windows lie along an axis, and how much each voxel of a window counts.

A window over several axes is the product of one window an axis, and so is its weight. The weights of the windows along an axis are
divided by their sum, so that they add up to one at every voxel: predictions are accumulated without a second volume of weights and
without a division at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

SIGMA_PER_LENGTH = 1 / 8
"""nnU-Net's importance map (Isensee et al., Nature Methods 2021): a Gaussian with a standard deviation of an eighth of the window"""
FLOOR = 1e-3
"""least weight before normalization, relative to the centre's: a border voxel that one window alone covers still counts fully"""


@dataclass(frozen=True)
class AxisWindow:
    """A window along one axis.

    Attributes:
        start: its first voxel; negative where the axis is shorter than the window.
        length: voxels of the window.
        first: first voxel of the axis that it covers.
        weights: float32, of the voxels ``first .. first + len(weights)`` that lie within the axis; all > 0.
    """

    start: int
    length: int
    first: int
    weights: NDArray[np.float32]

    @property
    def covered(self) -> slice:
        """The voxels of the axis that the window covers."""
        return slice(self.first, self.first + len(self.weights))

    @property
    def inside(self) -> slice:
        """The same voxels, counted from the start of the window."""
        return slice(self.first - self.start, self.first - self.start + len(self.weights))


def window_starts(size: int, length: int, overlap: float) -> list[int]:
    """First voxels of the fewest evenly spread windows that are at most ``(1 - overlap) * length`` apart.

    The first starts at 0 and the last ends with the axis. An axis that is not longer than the window has one window, centred on it.

    Args:
        size: voxels of the axis.
        length: voxels of a window.
        overlap: in [0, 1).

    Raises:
        ValueError: a size or length below 1, or an overlap outside [0, 1).
    """
    if size < 1 or length < 1 or not 0 <= overlap < 1:
        raise ValueError(f"no windows of {length} voxels with overlap {overlap} on an axis of {size} voxels")
    if size <= length:
        return [(size - length) // 2]
    step = max(1.0, (1 - overlap) * length)
    count = int(np.ceil((size - length) / step - 1e-9)) + 1
    return [round(index * (size - length) / (count - 1)) for index in range(count)]


def gaussian_weights(length: int) -> NDArray[np.float64]:
    """Weights of one window: a Gaussian around its middle, 1 at the top, never below ``FLOOR``. Shape (length,)."""
    distance = np.arange(length) - (length - 1) / 2
    weights = np.exp(-0.5 * (distance / (length * SIGMA_PER_LENGTH)) ** 2)
    return np.asarray(np.maximum(weights / weights.max(), FLOOR))


def axis_windows(size: int, length: int, overlap: float) -> list[AxisWindow]:
    """All windows along an axis, with weights that add up to one at every voxel.

    Args:
        size: voxels of the axis.
        length: voxels of a window.
        overlap: share of a window that the next one covers again, in [0, 1).

    Raises:
        ValueError: as :func:`window_starts`.
    """
    starts = window_starts(size, length, overlap)
    profile = gaussian_weights(length)
    total = np.zeros(size)
    parts: list[tuple[int, int, NDArray[np.float64]]] = []
    for start in starts:
        first, last = max(start, 0), min(start + length, size)
        part = profile[first - start : last - start]
        total[first:last] += part
        parts.append((start, first, part))
    return [AxisWindow(start, length, first, (part / total[first : first + len(part)]).astype(np.float32)) for start, first, part in parts]


def plane_windows(size: Sequence[int], window: Sequence[int], overlap: float) -> list[tuple[AxisWindow, AxisWindow]]:
    """All in-plane windows (rows, columns) over a plane of ``size`` = (height, width), row by row."""
    return list(product(axis_windows(size[0], window[0], overlap), axis_windows(size[1], window[1], overlap)))
