"""The privacy floor: what of a site's measurements may leave it.

Every number that a site releases stands for at least ``floor`` of its cases. Counts are coarsened to that end on trees fixed before any
data is seen (``planning/grids.py``), finely where many cases lie and coarsely where few do. This is k-anonymity (Sweeney, "k-anonymity: a
model for protecting privacy", 2002) of each field by local recoding (Xu et al., "Utility-based anonymization using local recoding", KDD
2006): a case is known to the width of its bin and shares it with ``floor - 1`` others. Intensities are different: a case spreads them over
many bins. There the cases that have any are counted, and the dominance rule of statistical offices holds as well (Hundepool et al.,
"Statistical Disclosure Control", 2012, chapter 4): none of them gives more than half of what a bin holds.

What this protects from, and what not: docs/privacy.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fedsam_pipeline.planning.grids import INTENSITY_TREE, LINEAR_TREE, LOG_TREE, Node, Tree, add_counts
from fedsam_pipeline.planning.measures import ChannelPool, Group, PositionCounts, SiteMeasures, count_nodes
from fedsam_pipeline.specs.fingerprint import (
    ChannelFingerprint,
    ClassFingerprint,
    Counts,
    Fingerprint,
    IntensityMoments,
    WithheldFingerprint,
)

DEFAULT_FLOOR = 5
"""cases; the smallest cell that many statistical offices publish"""


class Released(NamedTuple):
    """What leaves a site, and what the site is told of what does not: ``held_back`` is for its own people and stays there."""

    document: Fingerprint | WithheldFingerprint
    held_back: tuple[str, ...]


def release(site: SiteMeasures, floor: int, *, cases_a_patient: int = 1) -> Released:
    """What may leave a site.

    Args:
        site: all its cases.
        floor: patients that every released number stands for; 1 releases everything as it was counted.
        cases_a_patient: the most cases that one patient has. So many times as many cases make sure of ``floor`` patients.

    Returns:
        The fingerprint, or where the site has too few cases, a document that says only this.
    """
    asked, floor = floor, floor * cases_a_patient if floor > 1 else 1
    fewer = f"fewer than {floor}" + (f" ({asked} patients of up to {cases_a_patient})" if floor > asked else "")
    if site.num_cases < floor:
        reason = f"this site has too few cases for its privacy floor of {asked}"
        return Released(WithheldFingerprint(withheld=reason), (f"the whole fingerprint: {site.num_cases} cases, {fewer}",))
    held_back: list[str] = []
    weight, empty = site.with_foreground.num_cases, site.without_foreground.num_cases
    geometry = [_added(*parts) for parts in zip(site.with_foreground.counts, site.without_foreground.counts, strict=True)]
    num_cases = site.num_cases
    if weight < floor:
        held_back += [f"intensities and classes: {weight} cases with foreground, {fewer}"] if floor > 1 else []
    elif 0 < empty < floor:  # else their number would follow from num_cases and weight
        geometry, num_cases = list(site.with_foreground.counts), weight
        held_back.append(f"{empty} cases without foreground, {fewer}")
    counts = [_coarsen_counts(each, LINEAR_TREE, floor) for each in geometry]  # in the order of GEOMETRY
    classes = {name: _release_class(found, weight, floor) for name, found in site.classes.items()}
    if floor > 1 and weight >= floor and (missing := sorted(name for name, found in classes.items() if found is None)):
        held_back.append(f"classes {', '.join(missing)}: {fewer} cases hold them, or hold foreground without them")
    return Released(
        Fingerprint(
            dataset_name=site.dataset_name,
            labels=site.labels,
            privacy_floor=asked,
            num_sites=1,
            num_cases=num_cases,
            spacing=(counts[0], counts[1], counts[2]),
            size=(counts[3], counts[4], counts[5]),
            extent=(counts[6], counts[7], counts[8]),
            kept_fraction=counts[9],
            channels=tuple(_release_channel(name, pool, floor) for name, pool in zip(site.channel_names, site.channels, strict=True)),
            classes={name: found for name, found in classes.items() if found is not None},
        ),
        tuple(held_back),
    )


def coarsen(nodes: Mapping[Node, Group], tree: Tree, floor: int, *, spread: bool) -> Counts:
    """The finest counts that this rule finds, each of a group that may be released.

    From the leaves up: two halves of a node that may both be released stay apart. Where only one may, what the other holds goes to their
    common node, together with just as much of the first, taken from the nodes nearest to it, as makes a group that may be released. Where
    neither may, they become one.

    Args:
        nodes: the group of every node of ``tree`` that holds anything.
        tree: the tree.
        floor: cases a group must come from.
        spread: whether a case may be in several positions; else each gives 1 to one.

    Returns:
        Bin to mass; a bin may lie inside another. The total mass is kept. Empty where all together may not be released.
    """
    released = _Rule(floor, spread).released_of((tree.depth, 0), nodes)
    return add_counts({tree.bin(node): group.mass} for node, group in released.items())


@dataclass(frozen=True)
class _Rule:
    """See ``coarsen``."""

    floor: int
    spread: bool

    def may_leave(self, group: Group) -> bool:
        """Whether a group comes from enough cases of which none gives more than half."""
        return group.cases >= self.floor and (self.floor == 1 or 2 * group.largest <= group.mass)

    def released_of(self, node: Node, nodes: Mapping[Node, Group]) -> dict[Node, Group]:
        """What is released of a node; nothing where all it holds must go to the node above."""
        if node not in nodes:
            return {}
        whole = {node: nodes[node]} if self.may_leave(nodes[node]) else {}
        level, index = node
        if level == 0:
            return whole
        lower, upper = (level - 1, 2 * index), (level - 1, 2 * index + 1)
        below, above = self.released_of(lower, nodes), self.released_of(upper, nodes)
        if below and above:
            return below | above
        if not below and not above:
            return whole
        released, sparse = (below, nodes.get(upper)) if below else (above, nodes.get(lower))
        if sparse is None:
            return released
        for neighbour in _nearest_first(released, to_upper_end=bool(below)):
            taken, left = self._split(released.pop(neighbour), self.floor - sparse.cases)
            if left is not None:
                released[neighbour] = left
            sparse = self._join(sparse, taken)
            if self.may_leave(sparse):
                return released | {node: sparse}
        return whole

    def _split(self, group: Group, wanted: int) -> tuple[Group, Group | None]:
        """``wanted`` cases of a group, and the others where enough are left; all of it where cases cannot be taken out."""
        left = group.cases - wanted
        if self.spread or left < self.floor:
            return group, None
        return Group(wanted, wanted, 1), Group(left, left, 1)

    def _join(self, a: Group, b: Group) -> Group:
        """Two groups of different positions. Where a case may be in both: at least as many cases as in one, at most both largest parts."""
        if self.spread:
            return Group(a.mass + b.mass, max(a.cases, b.cases), a.largest + b.largest)
        return Group(a.mass + b.mass, a.cases + b.cases, 1)


def _nearest_first(nodes: Iterable[Node], *, to_upper_end: bool) -> list[Node]:
    """Nodes sorted by how near they reach to the upper, or the lower, end of all; of equals, the finer first."""
    if to_upper_end:
        return sorted(nodes, key=lambda node: (-((node[1] + 1) << node[0]), node[0]))
    return sorted(nodes, key=lambda node: (node[1] << node[0], node[0]))


def _release_channel(name: str, pool: ChannelPool, floor: int) -> ChannelFingerprint:
    if pool.moments.weight < floor:
        return ChannelFingerprint(name=name, moments=IntensityMoments(), histogram={})
    return ChannelFingerprint(name=name, moments=pool.moments, histogram=coarsen(pool.nodes, INTENSITY_TREE, floor, spread=True))


def _release_class(counts: tuple[PositionCounts, ...], weight: int, floor: int) -> ClassFingerprint | None:
    """One class, or ``None`` where few cases hold it; ``weight`` cases have any foreground.

    Where few of these lack the class, some that hold it are left out as well: else their number would follow from ``weight``.
    """
    holding = sum(counts[0].values())
    lacking = weight - holding
    surplus = floor - lacking if 0 < lacking < floor else 0
    if holding - surplus < max(1, floor):
        return None
    trees = (LOG_TREE, LINEAR_TREE, LOG_TREE, LOG_TREE, LOG_TREE)
    volume, components, z, y, x = (_coarsen_counts(_thinned(each, surplus), tree, floor) for each, tree in zip(counts, trees, strict=True))
    return ClassFingerprint(num_cases=holding - surplus, volume_mm3=volume, components=components, extent_mm=(z, y, x))


def _coarsen_counts(counts: PositionCounts, tree: Tree, floor: int) -> Counts:
    return coarsen(count_nodes(counts, tree), tree, floor, spread=False)


def _thinned(counts: PositionCounts, surplus: int) -> PositionCounts:
    """The counts without ``surplus`` cases, taken evenly from low to high."""
    positions = [position for position, count in sorted(counts.items()) for _ in range(count)]
    left_out = {(2 * number + 1) * len(positions) // (2 * surplus) for number in range(surplus)}
    kept: PositionCounts = {}
    for rank, position in enumerate(positions):
        if rank not in left_out:
            kept[position] = kept.get(position, 0) + 1
    return kept


def _added(a: PositionCounts, b: PositionCounts) -> PositionCounts:
    return {position: a.get(position, 0) + b.get(position, 0) for position in a.keys() | b.keys()}
