"""What is measured of the cases of a site, before anything leaves it.

These records live in memory only and are never written: they know single cases. ``planning/privacy.py`` makes of them what may leave.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.planning.grids import INTENSITY_TREE, Node, Tree
from fedsam_pipeline.planning.merge import merge_moments
from fedsam_pipeline.specs.fingerprint import IntensityMoments

GEOMETRY = ("spacing", "spacing", "spacing", "size", "size", "size", "extent", "extent", "extent", "kept_fraction")
"""what the ten positions of a case's geometry are; threes are (z, y, x)"""
CLASS_MEASURES = ("volume_mm3", "components", "extent_mm", "extent_mm", "extent_mm")
"""what the five positions of a class in a case are"""


@dataclass(frozen=True, eq=False)
class ChannelMeasures:
    """Foreground intensities of one channel of a case.

    Args:
        mean, variance: of the foreground voxels.
        positions: (P,) int32, rising, on the signed-log grid.
        masses: (P,) int32, of those positions; together ``CASE_MASS``.
    """

    mean: float
    variance: float
    positions: NDArray[np.int32]
    masses: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class CaseMeasures:
    """One case.

    Args:
        geometry: grid positions, see ``GEOMETRY``.
        channels: none where the case has no foreground voxel.
        classes: grid positions of every foreground class that the case holds, see ``CLASS_MEASURES``.
    """

    geometry: tuple[int, ...]
    channels: tuple[ChannelMeasures, ...]
    classes: dict[str, tuple[int, ...]]


class Group(NamedTuple):
    """What a node of a tree stands for: its mass, how many cases it comes from (at least), and the most that one of them gives."""

    mass: int
    cases: int
    largest: int


PositionCounts = dict[int, int]
"""grid position to number of cases, each in one position"""


def count_nodes(counts: PositionCounts, tree: Tree) -> dict[Node, Group]:
    """The groups of all nodes of the tree that hold a case, where each case is in one position."""
    cases: dict[Node, int] = {}
    for position, count in counts.items():
        for level in range(tree.depth + 1):
            node = tree.node(position, level)
            cases[node] = cases.get(node, 0) + count
    return {node: Group(count, count, 1) for node, count in cases.items()}


@dataclass
class ChannelPool:
    """One channel's intensities over the cases of a site; its size does not grow with the number of cases."""

    moments: IntensityMoments = field(default_factory=IntensityMoments)
    nodes: dict[Node, Group] = field(default_factory=dict)
    """of all nodes of ``INTENSITY_TREE`` that hold mass"""

    def add(self, case: ChannelMeasures) -> None:
        """Pools one case more."""
        self.moments = merge_moments(self.moments, IntensityMoments(weight=1, mean=case.mean, m2=case.variance))
        positions, masses = case.positions.astype(np.int64), case.masses.astype(np.int64)
        for level in range(INTENSITY_TREE.depth + 1):
            index = (positions + INTENSITY_TREE.offset) >> level
            first = np.flatnonzero(np.diff(index, prepend=index[0] - 1))  # where another bin begins: positions rise
            positions, masses = positions[first], np.add.reduceat(masses, first)
            for position, mass in zip(positions.tolist(), masses.tolist(), strict=True):
                node = INTENSITY_TREE.node(position, level)
                before = self.nodes.get(node, Group(0, 0, 0))
                self.nodes[node] = Group(before.mass + mass, before.cases + 1, max(before.largest, mass))


@dataclass
class GeometryPool:
    """The geometry of some cases: counts of each of ``GEOMETRY``."""

    num_cases: int = 0
    counts: tuple[PositionCounts, ...] = field(default_factory=lambda: tuple({} for _ in GEOMETRY))

    def add(self, geometry: tuple[int, ...]) -> None:
        """Pools one case more."""
        self.num_cases += 1
        _count(self.counts, geometry)


class SiteMeasures:
    """The cases of a site, pooled one after the other.

    Args:
        dataset_name: of the dataset.
        labels: label name to value, background 0 included.
        channel_names: in order.
    """

    def __init__(self, dataset_name: str, labels: dict[str, int], channel_names: tuple[str, ...]) -> None:
        self.dataset_name = dataset_name
        self.labels = labels
        self.channel_names = channel_names
        self.with_foreground = GeometryPool()
        self.without_foreground = GeometryPool()
        self.channels = tuple(ChannelPool() for _ in channel_names)
        self.classes: dict[str, tuple[PositionCounts, ...]] = {
            name: tuple({} for _ in CLASS_MEASURES) for name, value in labels.items() if value
        }

    @property
    def num_cases(self) -> int:
        """Cases pooled so far."""
        return self.with_foreground.num_cases + self.without_foreground.num_cases

    def add(self, case: CaseMeasures) -> None:
        """Pools one case more. The order of cases shows in the last bits of the moments only."""
        (self.with_foreground if case.channels else self.without_foreground).add(case.geometry)
        for pool, channel in zip(self.channels, case.channels, strict=bool(case.channels)):
            pool.add(channel)
        for name, positions in case.classes.items():
            _count(self.classes[name], positions)


def _count(counts: tuple[PositionCounts, ...], positions: tuple[int, ...]) -> None:
    for each, position in zip(counts, positions, strict=True):
        each[position] = each.get(position, 0) + 1
