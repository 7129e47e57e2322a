"""Many fingerprints into one: counts add exactly, moments by Chan's formula."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce

from fedsam_pipeline.errors import FedsamError, fault_list
from fedsam_pipeline.planning.grids import INTENSITY_TREE, LINEAR_TREE, LOG_TREE, Tree, add_counts
from fedsam_pipeline.specs.fingerprint import ChannelFingerprint, ClassFingerprint, Counts, Fingerprint, IntensityMoments

MOST_CASES = 10**9
"""of a site"""
LARGEST = 3.5e38
"""intensity: all numbers of single precision are smaller"""


def merge_fingerprints(fingerprints: Mapping[str, Fingerprint]) -> Fingerprint:
    """The federation's fingerprint of its sites', merged in sorted order of their names, so that arrival order does not matter.

    Args:
        fingerprints: by site.

    Raises:
        FedsamError: no site, sites that disagree on dataset, labels or channels, or a fingerprint with numbers that no images give.
    """
    if not fingerprints:
        raise FedsamError("there is no fingerprint to merge", found="0 sites", expected="at least one", fix="add a site with cases")
    for site, fingerprint in fingerprints.items():
        if faults := list(_impossible(fingerprint)):
            raise FedsamError(
                f"the fingerprint of site {site} cannot be",
                found=fault_list(faults, shown=5),
                expected="counts on the grids of docs/formats.md, and moments of single-precision numbers",
                fix="make it anew at that site: fedsam_plan_and_preprocess",
            )
    sites = sorted(fingerprints)
    first = fingerprints[sites[0]]
    for site in sites[1:]:
        other = fingerprints[site]
        for what, ours, theirs in (
            ("dataset", first.dataset_name, other.dataset_name),
            ("labels", first.labels, other.labels),
            ("channels", [channel.name for channel in first.channels], [channel.name for channel in other.channels]),
        ):
            if ours != theirs:
                raise FedsamError(
                    f"sites {sites[0]} and {site} disagree on the {what}",
                    found=f"{theirs} at {site}",
                    expected=f"{ours}, as at {sites[0]}",
                    fix="give all sites the same dataset.json (apart from its cases)",
                )
    members = [fingerprints[site] for site in sites]
    return pool_fingerprints(members)


def _impossible(fingerprint: Fingerprint) -> Iterator[str]:
    """What no images give: planning would have to compute with numbers of any size, and a fingerprint comes from another machine."""
    cases = fingerprint.num_cases
    if cases > MOST_CASES or fingerprint.num_sites > cases:
        yield f"{cases} cases of {fingerprint.num_sites} sites"
    if fingerprint.labels.get("background") != 0 or sorted(fingerprint.labels.values()) != list(range(len(fingerprint.labels))):
        yield "labels that are not numbered from background, 0"
    for name in ("spacing", "size", "extent"):
        for axis, counts in enumerate(getattr(fingerprint, name)):
            yield from _off_grid(f"{name}.{axis}", counts, LINEAR_TREE)
            if (0, 0) in counts:
                yield f"{name}.{axis}: images of no length"
    yield from _off_grid("kept_fraction", fingerprint.kept_fraction, LINEAR_TREE)
    for channel in fingerprint.channels:
        moments = channel.moments
        yield from _off_grid(f"the histogram of {channel.name}", channel.histogram, INTENSITY_TREE)
        if moments.weight > cases or abs(moments.mean) > LARGEST or moments.m2 > moments.weight * (2 * LARGEST) ** 2:
            yield f"moments of {channel.name}: {moments.weight} cases, mean {moments.mean:g}, squares {moments.m2:g}"
    for name, measured in fingerprint.classes.items():
        if measured.num_cases > cases:
            yield f"{name}: {measured.num_cases} of {cases} cases"
        yield from _off_grid(f"{name}: components", measured.components, LINEAR_TREE)
        yield from _off_grid(f"{name}: volume_mm3", measured.volume_mm3, LOG_TREE)
        for axis, counts in enumerate(measured.extent_mm):
            yield from _off_grid(f"{name}: extent_mm.{axis}", counts, LOG_TREE)


def _off_grid(name: str, counts: Counts, tree: Tree) -> Iterator[str]:
    root = tree.bin((tree.depth, 0))
    if off := next((each for each in counts if not root.low <= each.low <= each.high <= root.high), None):
        yield f"{name}: a bin {off!s:.60} outside {root}"


def pool_fingerprints(members: Sequence[Fingerprint]) -> Fingerprint:
    """Adds up fingerprints of one dataset, in the order given.

    Args:
        members: at least one.
    """
    first = members[0]
    return Fingerprint(
        dataset_name=first.dataset_name,
        labels=first.labels,
        privacy_floor=min(member.privacy_floor for member in members),
        num_sites=sum(member.num_sites for member in members),
        num_cases=sum(member.num_cases for member in members),
        spacing=_add_axes(member.spacing for member in members),
        size=_add_axes(member.size for member in members),
        extent=_add_axes(member.extent for member in members),
        kept_fraction=add_counts(member.kept_fraction for member in members),
        channels=tuple(_add_channels(parts) for parts in zip(*(member.channels for member in members), strict=True)),
        classes={name: _add_classes(parts) for name, parts in _by_class(members).items()},
    )


def merge_moments(a: IntensityMoments, b: IntensityMoments) -> IntensityMoments:
    """Moments of two groups together (Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm", 1979)."""
    weight = a.weight + b.weight
    if not a.weight or not b.weight:
        return a if a.weight else b
    delta = b.mean - a.mean
    return IntensityMoments(
        weight=weight,
        mean=(a.weight * a.mean + b.weight * b.mean) / weight,
        m2=a.m2 + b.m2 + delta * delta * (a.weight * b.weight / weight),
    )


def _add_axes(parts: Iterable[tuple[Counts, Counts, Counts]]) -> tuple[Counts, Counts, Counts]:
    z, y, x = zip(*parts, strict=True)
    return add_counts(z), add_counts(y), add_counts(x)


def _by_class(members: Sequence[Fingerprint]) -> dict[str, list[ClassFingerprint]]:
    """The parts of every class that some member releases."""
    parts = {name: [member.classes[name] for member in members if name in member.classes] for name in sorted(members[0].labels)}
    return {name: found for name, found in parts.items() if found}


def _add_channels(parts: Sequence[ChannelFingerprint]) -> ChannelFingerprint:
    return ChannelFingerprint(
        name=parts[0].name,
        moments=reduce(merge_moments, (part.moments for part in parts)),
        histogram=add_counts(part.histogram for part in parts),
    )


def _add_classes(parts: Sequence[ClassFingerprint]) -> ClassFingerprint:
    return ClassFingerprint(
        num_cases=sum(part.num_cases for part in parts),
        volume_mm3=add_counts(part.volume_mm3 for part in parts),
        components=add_counts(part.components for part in parts),
        extent_mm=_add_axes(part.extent_mm for part in parts),
    )
