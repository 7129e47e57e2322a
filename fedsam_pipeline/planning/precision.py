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
    log_position,
    log_value,
    quantile_range,
)
from fedsam_pipeline.planning.objects import most_objects, object_extents, smallest_class
from fedsam_pipeline.planning.thresholds import IntensityRules, SpacingRules, Thresholds
from fedsam_pipeline.specs.fingerprint import Bin, Counts, Fingerprint
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


def extent_ranges(fingerprint: Fingerprint) -> Ranges:
    """Of the median field of view (z, y, x), mm."""
    z, y, x = (value_range(counts, 0.5, _field_of_view) for counts in fingerprint.extent)
    return z, y, x


def size_ranges(fingerprint: Fingerprint, spacings: Ranges) -> Ranges:
    """Of the median size (z, y, x) in voxels, at a target spacing in ``spacings``."""
    extents = extent_ranges(fingerprint)
    z, y, x = (Range(extent.low / spacing.high, extent.high / spacing.low) for extent, spacing in zip(extents, spacings, strict=True))
    return z, y, x


def object_ranges(fingerprint: Fingerprint, names: Iterable[str]) -> tuple[Range | None, Range | None, Range | None]:
    """Of the median extent along (z, y, x) of the objects of some classes together, mm; ``None`` without any.

    An object is no longer than its case's field of view. Of K objects, K - K // 2 are as long as the median or longer; they lie in so many
    cases divided by the number of classes, and the shortest field of view of just these cannot be below that of as many largest ones.
    """
    members = [fingerprint.classes[name] for name in names]
    z, y, x = (_object_range(fingerprint.extent[axis], [measured.extent_mm[axis] for measured in members]) for axis in range(3))
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
    axis, in_plane = plans.slice_axis, [other for other in range(3) if other != plans.slice_axis]
    z, y, x = (Range(length, length) for length in plans.target_spacing)
    spacings = (z, y, x) if spacing_known else spacing_ranges(fingerprint, rules.spacing)
    sizes, extents = size_ranges(fingerprint, spacings), extent_ranges(fingerprint)
    lengths = [voxels * length for voxels, length in zip(size, plans.target_spacing, strict=True)]
    grid = known_to(plans.target_spacing, spacings, "mm of spacing")
    plane = known_to([size[other] for other in in_plane], [sizes[other] for other in in_plane], "voxels")
    fields = known_to([lengths[other] for other in in_plane], [extents[other] for other in in_plane], "mm of field of view")
    thickness = _thickness_note(fingerprint, axis)
    cases, sites = fingerprint.num_cases, fingerprint.num_sites
    side, number = _side_note(fingerprint, in_plane), _number_note(fingerprint)
    notes = {
        "target_spacing": known_to(plans.target_spacing, spacings, "mm"),
        "slice_axis": _joined(grid, known_to(lengths, extents, "mm of field of view")),
        "image_size": plane,
        "window": plane,
        "slice_mixing": _joined(grid, thickness),
        "slab_depth": _joined(known_to([plans.target_spacing[axis]], [spacings[axis]], "mm of spacing"), thickness),
        "training.effective_batch": known_to([size[axis] * cases], [_times(sizes[axis], cases)], "slices"),
        "training.rounds": known_to([size[axis] * cases / sites], [_times(sizes[axis], cases / sites)], "slices a site"),
        "prompts.mode": _joined(side, number, fields) if rules.prompts.mode == "rule" else "",
        "prompts.jitter_mm": side,
        "prompts.dropout": _joined(side, fields),
    }
    for channel in range(len(plans.channels)):
        notes[f"channels.{channel}"] = _channel_note(fingerprint, plans, channel, rules.intensity)
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


def _thickness_note(fingerprint: Fingerprint, axis: int) -> str:
    """Of the median object along one axis."""
    found, possible = object_extents(fingerprint.classes.values())[axis], object_ranges(fingerprint, fingerprint.classes)[axis]
    return "" if found is None or possible is None else known_to([found], [possible], "mm of object extent")


def _side_note(fingerprint: Fingerprint, axes: Sequence[int]) -> str:
    """Of the longest side of the smallest class's median object; coarsening may have hidden which class that is."""
    smallest = smallest_class(fingerprint, axes)
    if smallest is None:
        return ""
    sides = []
    for name in fingerprint.classes:
        ranges = [found for axis, found in enumerate(object_ranges(fingerprint, [name])) if axis in axes and found is not None]
        sides.append(Range(max(each.low for each in ranges), max(each.high for each in ranges)))
    possible = Range(min(each.low for each in sides), min(each.high for each in sides))
    return known_to([smallest[1]], [possible], "mm of object extent")


def _number_note(fingerprint: Fingerprint) -> str:
    """Of the objects in a case, of the class with the most."""
    found = most_objects(fingerprint)
    ranges = [value_range(measured.components, 0.5, float) for measured in fingerprint.classes.values()]
    if found is None:
        return ""
    return known_to([found], [Range(max(each.low for each in ranges), max(each.high for each in ranges))], "objects a case")


def _object_range(fields: Counts, parts: Sequence[Counts]) -> Range | None:
    counts = add_counts(parts)
    if not counts:
        return None
    found, cases, objects = value_range(counts, 0.5, log_value), sum(fields.values()), sum(counts.values())
    shared = math.ceil((objects - objects // 2) / len(parts))
    longest = value_range(fields, (cases - shared) / max(1, cases - 1), _field_of_view).high
    cap = log_value(log_position(longest) + 1)  # both are rounded to their grids
    return Range(found.low, max(found.low, min(found.high, cap)))


def _times(numbers: Range, factor: float) -> Range:
    return Range(numbers.low * factor, numbers.high * factor)


def _joined(*notes: str) -> str:
    """``known to ... and ...``."""
    return " and ".join(note if not number else note.removeprefix("known to ") for number, note in enumerate(filter(None, notes)))


def _field_of_view(position: float) -> float:
    return linear_value(max(1, position), EXTENT_STEP)


def _millimetres(position: float) -> float:
    return linear_value(max(1, position), SPACING_STEP)  # a bin may begin at 0, a spacing does not


def _rounded_up(error: float) -> str:
    """Two significant digits, never less than ``error``."""
    if not error:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(error)) - 1)
    return f"{math.ceil(error / unit - 1e-9) * unit:.3g}"
