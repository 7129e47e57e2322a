"""The grids of a fingerprint's counts, fixed before any data is seen, and statistics of such counts.

A grid turns a value into an integer position and a position back into the value at its centre. Over the positions of each grid stands a
binary tree, fixed as well: its nodes are the bins into which a site may join positions (``planning/privacy.py``).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.specs.fingerprint import Bin, Counts

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


Node = tuple[int, int]
"""of a tree: level (0 for single positions) and index; its halves are ``(level - 1, 2 * index)`` and ``(level - 1, 2 * index + 1)``"""


@dataclass(frozen=True)
class Tree:
    """Bins of 1, 2, 4, ... ``2**depth`` positions, each made of two halves; the root starts at ``-offset``.

    All offsets have the binary digits 0101...01. So 0 and the powers of two, where sizes in voxels gather, are no edges of wide bins:
    values on both sides of them share a narrow one.

    Args:
        offset: where the root starts.
        depth: level of the root.
        lowest: positions below do not exist; bins end there.
    """

    offset: int
    depth: int
    lowest: int

    def node(self, position: int, level: int) -> Node:
        """The node of ``2**level`` positions that holds ``position``.

        Raises:
            ValueError: the position lies outside the root.
        """
        index = (position + self.offset) >> level
        if position < self.lowest or not 0 <= index < 1 << (self.depth - level):
            raise ValueError(f"position {position} lies outside {self.bin((self.depth, 0))}")
        return level, index

    def bin(self, node: Node) -> Bin:
        """The positions of a node."""
        level, index = node
        low = (index << level) - self.offset
        return Bin(max(low, self.lowest), low + (1 << level) - 1)


LINEAR_TREE = Tree(offset=0x15555555, depth=30, lowest=0)
"""of the linear grids and of plain numbers"""
LOG_TREE = Tree(offset=0x555, depth=12, lowest=-0x555)
"""of the log grid: from below 1e-11 to above 1e23"""
INTENSITY_TREE = Tree(offset=0x5555, depth=16, lowest=-0x5555)
"""of the signed-log grid: all numbers of single precision"""


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


def add_counts(parts: Iterable[Mapping[Bin, int]]) -> Counts:
    """Sum of counts; exact, in any order."""
    total: Counts = {}
    for part in parts:
        for each, count in part.items():
            total[each] = total.get(each, 0) + count
    return dict(sorted(total.items()))


def exact_counts(counts: Mapping[int, int]) -> Counts:
    """Counts of single positions."""
    return {Bin(position, position): count for position, count in sorted(counts.items())}


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


def quantile(counts: Mapping[Bin, int], q: float) -> float:
    """The position below which the share ``q`` of the counts lies, as ``numpy.quantile`` gives it for the list that the counts stand for.

    What a bin counts is taken at the bin's centre.

    Raises:
        ValueError: no counts.
    """
    return _quantile(counts, q, lambda each: (each.low + each.high) / 2)


def quantile_range(counts: Mapping[Bin, int], q: float) -> tuple[float, float]:
    """The lowest and the highest position that ``quantile`` could have, had nothing been coarsened; the same twice where nothing was.

    All counts at the low ends of their bins give the one, all at the high ends the other: a quantile grows with every value of the list.

    Raises:
        ValueError: no counts.
    """
    return _quantile(counts, q, lambda each: each.low), _quantile(counts, q, lambda each: each.high)


def median(counts: Mapping[Bin, int]) -> float:
    """The median position."""
    return quantile(counts, 0.5)


def _quantile(counts: Mapping[Bin, int], q: float, place: Callable[[Bin], float]) -> float:
    total = sum(counts.values())
    if not total:
        raise ValueError("no counts")
    placed = sorted((place(each), count) for each, count in counts.items())
    rank = q * (total - 1)
    below = math.floor(rank)
    low, high = _at_rank(placed, below), _at_rank(placed, min(below + 1, total - 1))
    return low + (high - low) * (rank - below)


def _at_rank(placed: list[tuple[float, int]], rank: int) -> float:
    seen = 0
    for position, count in placed:
        seen += count
        if rank < seen:
            return position
    raise ValueError(f"rank {rank} of {seen}")
