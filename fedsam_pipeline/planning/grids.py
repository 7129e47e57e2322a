"""The grids of a fingerprint's counts, fixed before any data is seen, and statistics of such counts.

A grid turns a value into an integer position and a position back into the value at its centre.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.specs.fingerprint import Counts

SPACING_STEP = 1e-3
"""mm: finer than any scanner's header means"""
EXTENT_STEP = 0.1
"""mm"""
FRACTION_STEP = 1e-3
LOG_STEP = 0.02
"""log grid: neighbouring positions differ by 2 %, so a value is known to 1 %"""
INTENSITY_STEP = 0.005
"""signed-log grid: relative width of a position, so a value is known to 0.25 %"""
INTENSITY_SCALE = 0.01
"""signed-log grid: around zero the grid is linear, with positions of ``INTENSITY_STEP * INTENSITY_SCALE``"""


def linear_position(value: float, step: float) -> int:
    """Position on a linear grid; positive values stay positive."""
    return max(1, round(value / step)) if value > 0 else 0


def linear_value(position: float, step: float) -> float:
    """The value at a position (fractional ones lie between)."""
    return position / round(1 / step)  # exact decimals: 859 thousandths are 0.859


def log_position(value: float) -> int:
    """Position of a positive value on the log grid."""
    return round(math.log(value) / LOG_STEP)


def log_value(position: float) -> float:
    """The value at a position of the log grid."""
    return math.exp(position * LOG_STEP)


def intensity_positions(values: NDArray[Any]) -> NDArray[np.int64]:
    """Positions on the signed-log grid ``asinh(value / scale) / step``: logarithmic for large magnitudes, linear around zero."""
    return np.rint(np.arcsinh(values.astype(np.float64) / INTENSITY_SCALE) / INTENSITY_STEP).astype(np.int64)


def intensity_value(position: float) -> float:
    """The value at a position of the signed-log grid."""
    return INTENSITY_SCALE * math.sinh(position * INTENSITY_STEP)


def add_counts(parts: Iterable[Mapping[int, int]]) -> Counts:
    """Sum of counts; exact, in any order."""
    total: Counts = {}
    for part in parts:
        for position, count in part.items():
            total[position] = total.get(position, 0) + count
    return dict(sorted(total.items()))


def distribute(counts: NDArray[np.int64], mass: int) -> list[int]:
    """Splits ``mass`` into whole numbers in proportion to ``counts`` (largest remainders; ties go to the first).

    They add up to ``mass`` exactly. All arithmetic is on integers.
    """
    total = int(counts.sum())
    shares = [int(count) * mass // total for count in counts]
    remainders = [int(count) * mass % total for count in counts]
    for index in sorted(range(len(shares)), key=lambda i: -remainders[i])[: mass - sum(shares)]:
        shares[index] += 1
    return shares


def quantile(counts: Mapping[int, int], q: float) -> float:
    """The position below which the share ``q`` of the counts lies, as ``numpy.quantile`` gives it for the list that the counts stand for.

    Raises:
        ValueError: no counts.
    """
    total = sum(counts.values())
    if not total:
        raise ValueError("no counts")
    rank = q * (total - 1)
    below = math.floor(rank)
    low, high = _at_rank(counts, below), _at_rank(counts, min(below + 1, total - 1))
    return low + (high - low) * (rank - below)


def median(counts: Mapping[int, int]) -> float:
    """The median position."""
    return quantile(counts, 0.5)


def _at_rank(counts: Mapping[int, int], rank: int) -> int:
    seen = 0
    for position in sorted(counts):
        seen += counts[position]
        if rank < seen:
            return position
    raise ValueError(f"rank {rank} of {seen}")
