"""How well a merged fingerprint knows what planning reads from it, where sites have coarsened their counts.

A range holds the value that the same cases would have given uncoarsened; it is a single value where nothing was coarsened. Cases and
classes that a site holds back are in no count, and in no range.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from fedsam_pipeline.planning.grids import (
    EXTENT_STEP,
    FRACTION_STEP,
    SPACING_STEP,
    add_counts,
    intensity_value,
    linear_value,
    log_value,
    quantile_range,
)
from fedsam_pipeline.planning.objects import smallest_class
from fedsam_pipeline.planning.thresholds import IntensityRules, SpacingRules, Thresholds
from fedsam_pipeline.specs.fingerprint import Bin, ClassFingerprint, Fingerprint
from fedsam_pipeline.specs.plans import Plans


class Range(NamedTuple):
    """The lowest and the highest value that something can have."""

    low: float
    high: float

    def error(self, value: float) -> float:
        """How far ``value`` can be from the true one."""
        return max(self.high - value, value - self.low, 0.0)


Ranges = tuple[Range, Range, Range]


def value_range(counts: Mapping[Bin, int], q: float, value: Callable[[float], float]) -> Range:
    """Of a quantile; ``value`` turns a grid position into a value and grows with it."""
    low, high = quantile_range(counts, q)
    return Range(value(low), value(high))


def spacing_ranges(fingerprint: Fingerprint, rules: SpacingRules) -> Ranges:
    """Of the target spacing (z, y, x), mm: of the median, and where an axis may be strongly anisotropic, down to what it takes then."""
    median = [value_range(counts, 0.5, _millimetres) for counts in fingerprint.spacing]
    size = [Range(*quantile_range(counts, 0.5)) for counts in fingerprint.size]
    found = list(median)
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        coarsest = Range(*(max(median[other][end] for other in others) for end in range(2)))
        smallest = Range(*(min(size[other][end] for other in others) for end in range(2)))
        ratio = rules.anisotropy_ratio
        if not (median[axis].high > ratio * coarsest.low and size[axis].low * ratio < smallest.high):
            continue  # never coarse and small enough
        lower = value_range(fingerprint.spacing[axis], rules.anisotropic_quantile, _millimetres)
        certain = median[axis].low > ratio * coarsest.high and size[axis].high * ratio < smallest.low
        low = max(lower.low, coarsest.low)
        found[axis] = Range(low, max(lower.high, coarsest.high)) if certain else Range(min(low, median[axis].low), median[axis].high)
    return found[0], found[1], found[2]


def size_ranges(fingerprint: Fingerprint, spacings: Ranges) -> Ranges:
    """Of the median size (z, y, x) in voxels, at a target spacing in ``spacings``."""
    extents = (value_range(counts, 0.5, lambda position: linear_value(max(1, position), EXTENT_STEP)) for counts in fingerprint.extent)
    z, y, x = (Range(extent.low / spacing.high, extent.high / spacing.low) for extent, spacing in zip(extents, spacings, strict=True))
    return z, y, x


def object_ranges(classes: Iterable[ClassFingerprint]) -> tuple[Range | None, Range | None, Range | None]:
    """Of the median extent along (z, y, x) of the objects of some classes together, mm; ``None`` without any."""
    members = list(classes)
    pooled = [add_counts(measured.extent_mm[axis] for measured in members) for axis in range(3)]
    z, y, x = (value_range(counts, 0.5, log_value) if counts else None for counts in pooled)
    return z, y, x


def precision_notes(
    fingerprint: Fingerprint, plans: Plans, size: Sequence[float], rules: Thresholds, *, spacing_known: bool = False
) -> dict[str, str]:
    """What the privacy floor leaves open, for people: name of a planned value to words; values that are known exactly are not named.

    Args:
        fingerprint: of the federation.
        plans: made from it.
        size: median size (z, y, x) in voxels at target spacing.
        rules: thresholds.
        spacing_known: the target spacing does not come from the fingerprint: the user set it.
    """
    z, y, x = (Range(length, length) for length in plans.target_spacing)
    spacings = (z, y, x) if spacing_known else spacing_ranges(fingerprint, rules.spacing)
    notes = {
        "target_spacing": known_to(plans.target_spacing, spacings, "mm"),
        "image_size": known_to(*_in_plane(plans.slice_axis, size, size_ranges(fingerprint, spacings)), "voxels"),
    }
    for number in range(len(plans.channels)):
        notes[f"channels.{number}"] = _channel_note(fingerprint, plans, number, rules.intensity)
    notes["slab_depth"] = _object_note(fingerprint.classes.values(), (plans.slice_axis,))
    in_plane = sorted({0, 1, 2} - {plans.slice_axis})
    smallest = smallest_class(fingerprint, in_plane)
    for name in ("mode", "jitter_mm", "dropout"):
        notes[f"prompts.{name}"] = _object_note([] if smallest is None else [fingerprint.classes[smallest[0]]], in_plane)
    return {name: note for name, note in notes.items() if note}


def known_to(values: Sequence[float], ranges: Sequence[Range], unit: str) -> str:
    """``known to +-0.05 x 0 x 0 mm``, rounded up; empty where all are known exactly."""
    errors = [each.error(value) if each.low < each.high else 0.0 for value, each in zip(values, ranges, strict=True)]
    errors = [error if error > 1e-8 * abs(value) else 0.0 for value, error in zip(values, errors, strict=True)]  # nine digits leave that
    if not any(errors):
        return ""
    return f"known to +-{' x '.join(_rounded_up(error) for error in errors)} {unit}"


def _channel_note(fingerprint: Fingerprint, plans: Plans, number: int, rules: IntensityRules) -> str:
    planned, counts = plans.channels[number], fingerprint.channels[number].histogram
    if planned.clip_low is None or planned.clip_high is None:
        kept = value_range(fingerprint.kept_fraction, 0.5, lambda position: linear_value(position, FRACTION_STEP))
        centre = (kept.low + kept.high) / 2
        return known_to([centre], [kept], "of the volume that cropping keeps")
    ends = [value_range(counts, q, intensity_value) for q in rules.ct_clip]
    return known_to([planned.clip_low, planned.clip_high], ends, "at the two ends")


def _object_note(classes: Iterable[ClassFingerprint], axes: Sequence[int]) -> str:
    ranges = [found for axis, found in enumerate(object_ranges(classes)) if axis in axes and found is not None]
    return known_to([(each.low + each.high) / 2 for each in ranges], ranges, "mm of object extent")


def _in_plane(axis: int, values: Sequence[float], ranges: Ranges) -> tuple[list[float], list[Range]]:
    others = [other for other in range(3) if other != axis]
    return [values[other] for other in others], [ranges[other] for other in others]


def _millimetres(position: float) -> float:
    return linear_value(max(1, position), SPACING_STEP)  # a bin may begin at 0, a spacing does not


def _rounded_up(error: float) -> str:
    """Two significant digits, never less than ``error``."""
    if not error:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(error)) - 1)
    return f"{math.ceil(error / unit - 1e-9) * unit:.3g}"
