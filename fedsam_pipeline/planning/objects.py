"""What a fingerprint says of the objects: the largest component of a class in a case."""

from collections.abc import Iterable, Sequence

from fedsam_pipeline.planning.grids import add_counts, log_value, median
from fedsam_pipeline.specs.fingerprint import ClassFingerprint, Fingerprint


def object_extents(classes: Iterable[ClassFingerprint]) -> tuple[float | None, float | None, float | None]:
    """Median extent along (z, y, x) of the objects of some classes together, mm; ``None`` without any."""
    members = list(classes)
    pooled = [add_counts(measured.extent_mm[axis] for measured in members) for axis in range(3)]
    z, y, x = (log_value(median(counts)) if counts else None for counts in pooled)
    return z, y, x


def smallest_class(fingerprint: Fingerprint, axes: Sequence[int]) -> tuple[str, float] | None:
    """The class whose median object is smallest, by its longest side along some of the axes (z, y, x): its name and that side, mm."""
    sides = {}
    for name, measured in sorted(fingerprint.classes.items()):
        extents = object_extents([measured])
        sides[name] = max(extent for axis in axes if (extent := extents[axis]) is not None)
    return min(sides.items(), key=lambda item: item[1], default=None)


def most_objects(fingerprint: Fingerprint) -> float | None:
    """Median number of connected components in a case, of the class with the most; ``None`` without any foreground."""
    return max((median(measured.components) for measured in fingerprint.classes.values()), default=None)
