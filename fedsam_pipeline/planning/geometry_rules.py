"""Rules on the grid: spacing, slice axis, image size, window, slab. Pure arithmetic; axes are (z, y, x), lengths in mm."""

import math
from typing import Literal

from fedsam_pipeline.planning.decision import AXIS_NAMES, Decision, mm
from fedsam_pipeline.planning.grids import SPACING_STEP, linear_value, median, quantile
from fedsam_pipeline.planning.thresholds import ImageSizeRules, SlabRules, SliceAxisRules, SliceMixingRules, SpacingRules, TriplanarRules
from fedsam_pipeline.specs.base_model import BaseModelSpec
from fedsam_pipeline.specs.fingerprint import Fingerprint

Triple = tuple[float, float, float]
Axis = Literal[0, 1, 2]
SliceMixing = Literal["none", "neighbours", "mixer"]
AXES: tuple[Axis, Axis, Axis] = (0, 1, 2)


def target_spacing(fingerprint: Fingerprint, rules: SpacingRules) -> Decision[Triple]:
    """nnU-Net's target spacing: the median, except along a strongly anisotropic axis (Isensee et al., Nature Methods 2021)."""
    spacing = [linear_value(median(counts), SPACING_STEP) for counts in fingerprint.spacing]
    size = [median(counts) for counts in fingerprint.size]
    worst = max(range(3), key=lambda axis: spacing[axis])
    others = [axis for axis in range(3) if axis != worst]
    next_coarsest, next_smallest = max(spacing[axis] for axis in others), min(size[axis] for axis in others)
    ratio = rules.anisotropy_ratio
    medians = mm(tuple(spacing))
    if spacing[worst] > ratio * next_coarsest and size[worst] * ratio < next_smallest:
        low = linear_value(quantile(fingerprint.spacing[worst], rules.anisotropic_quantile), SPACING_STEP)
        spacing[worst] = max(low, next_coarsest)  # never finer than the plane: nnU-Net's guard
        why = (
            f"median {medians} of {fingerprint.num_cases} cases; {AXIS_NAMES[worst]} is over {ratio:g} times coarser and smaller than the "
            f"others, so it takes its {100 * rules.anisotropic_quantile:g}th percentile, {spacing[worst]:.4g} mm"
        )
    else:
        why = (
            f"median of {fingerprint.num_cases} cases; no axis is both {ratio:g} times coarser and {ratio:g} times smaller than the others"
        )
    return Decision((spacing[0], spacing[1], spacing[2]), why)


def chosen_spacing(spacing: Triple, planned: Decision[Triple]) -> Decision[Triple]:
    """A target spacing that the user chose in place of the planned one."""
    lengths = spacing[0], spacing[1], spacing[2]
    return Decision(lengths, f"set by the user (-overwrite_target_spacing); the rule takes {mm(planned.value)}: {planned.why}")


def slice_axis(spacing: Triple, size: Triple, rules: SliceAxisRules) -> Decision[Axis]:
    """The axis to cut slices along.

    Args:
        spacing: target spacing.
        size: median size in voxels at target spacing.
        rules: thresholds.
    """
    coarsest = max(AXES, key=lambda axis: spacing[axis])
    next_coarsest = max(spacing[axis] for axis in AXES if axis != coarsest)
    if spacing[coarsest] > rules.coarse_ratio * next_coarsest:
        return Decision(
            coarsest,
            f"{AXIS_NAMES[coarsest]} spacing {spacing[coarsest]:.4g} mm > {rules.coarse_ratio:g} x {next_coarsest:.4g} mm, "
            f"so slices are cut along {AXIS_NAMES[coarsest]}",
        )
    extents = [voxels * length for voxels, length in zip(size, spacing, strict=True)]
    shortest = min(extents)
    chosen = next(axis for axis in AXES if extents[axis] <= shortest * (1 + rules.tie))
    name = AXIS_NAMES[chosen]
    which = (
        f"{name} has the shortest side" if extents[chosen] == shortest else f"{name} is within {100 * rules.tie:g} % of the shortest side"
    )
    return Decision(
        chosen,
        f"no axis is {rules.coarse_ratio:g} times coarser than the others, and {which} of the median field of view {mm(tuple(extents))}: "
        "few, large slices",
    )


def triplanar(spacing: Triple, rules: TriplanarRules) -> Decision[bool]:
    """Whether slices along all three axes are offered.

    Args:
        spacing: target spacing.
        rules: thresholds.
    """
    ratio, limit = max(spacing) / min(spacing), rules.max_spacing_ratio
    measured = f"the coarsest of {mm(spacing)} is {ratio:.4g} times the finest"
    if ratio > limit * (1 + 1e-9):
        return Decision(False, f"{measured}, more than {limit:g} times: slices along the finer axes would have coarse rows")
    return Decision(True, f"{measured}, at most {limit:g} times: slices along every axis show detail alike")


def image_size(plane: tuple[float, float], base: BaseModelSpec, rules: ImageSizeRules) -> Decision[int]:
    """Side of the encoder's square input: the fewest whole attention windows that hold the median slice.

    Args:
        plane: median (height, width) of a slice in voxels at target spacing.
        base: the base model.
        rules: thresholds.
    """
    multiple, side = base.window_multiple, max(plane)
    needed = multiple * max(1, math.ceil(side / (1 + rules.slack) / multiple - 1e-9))
    largest = multiple * max(1, rules.max_side[base.encoder] // multiple)
    median_slice = f"median slice {plane[0]:.4g} x {plane[1]:.4g} voxels"
    if needed > largest:
        return Decision(
            largest, f"{median_slice} would need {needed} pixels; {base.name} is capped at {largest}, so slices are cut in windows"
        )
    return Decision(needed, f"{median_slice}; {needed} is the smallest multiple of {multiple} ({base.name}'s window) that holds it")


def window(plane: tuple[float, float], image_side: int, base: BaseModelSpec, rules: ImageSizeRules) -> Decision[tuple[int, int]]:
    """(height, width) of the in-plane window in voxels at target spacing; smaller than the image only where it is magnified."""
    side = max(plane)
    if image_side >= rules.magnify_from * side:
        small = base.stride * max(1, math.ceil(side / base.stride - 1e-9))
        return Decision(
            (small, small),
            f"{image_side} pixels are at least {rules.magnify_from:g} times the median slice's {side:.4g} voxels: windows of {small} "
            f"voxels are magnified {image_side / small:.3g} times",
        )
    return Decision((image_side, image_side), "one voxel at target spacing is one pixel of the encoder: no magnification")


def slice_mixing(
    num_channels: int, axis: int, spacing: Triple, object_extent: float | None, rules: SliceMixingRules
) -> Decision[SliceMixing]:
    """Whether slices see the slices beside them, and how: in the encoder's other input channels, or through a mixer after the neck.

    Args:
        num_channels: of the dataset.
        axis: slice axis.
        spacing: target spacing.
        object_extent: median extent of an object along the slice axis, mm; ``None`` where unknown.
        rules: thresholds.
    """
    step = spacing[axis]
    in_plane = math.sqrt(math.prod(length for other, length in enumerate(spacing) if other != axis))
    if step > rules.max_spacing_ratio * in_plane:
        return Decision(
            "none", f"slices {step:.4g} mm apart are more than {rules.max_spacing_ratio:g} x {in_plane:.4g} mm in-plane spacing"
        )
    if object_extent is not None and object_extent < rules.min_object_slices * step:
        return Decision(
            "none", f"the median object, {object_extent:.4g} mm, spans fewer than {rules.min_object_slices:g} slices of {step:.4g} mm"
        )
    near = f"slices {step:.4g} mm apart at {in_plane:.4g} mm in the plane: the slices before and after show the same anatomy"
    if num_channels == 1:
        return Decision("neighbours", f"one channel, {near}")
    return Decision("mixer", f"{near}; {num_channels} image channels take the encoder's inputs, so slices mix after its neck")


def slab_depth(
    slice_spacing: float, object_extent: float | None, effective_batch: int, mixing: SliceMixing, rules: SlabRules, min_mixed: int
) -> Decision[int]:
    """Slices of a slab: a divisor of the batch that spans about ``depth_mm``.

    Args:
        slice_spacing: target spacing along the slice axis.
        object_extent: median extent of an object along that axis, mm; ``None`` where unknown.
        effective_batch: slices of one optimizer step.
        mixing: how slices mix.
        rules: thresholds.
        min_mixed: least slices of a slab for a mixer.
    """
    span = rules.depth_mm if object_extent is None else min(rules.depth_mm, rules.max_object_share * object_extent)
    limit = min(span / slice_spacing + 1e-9, effective_batch / rules.min_slabs_per_step)
    divisors = [divisor for divisor in range(1, effective_batch + 1) if effective_batch % divisor == 0]
    depth = max((divisor for divisor in divisors if divisor <= limit), default=1)
    why = (
        f"{span:.3g} mm of tissue at {slice_spacing:.4g} mm a slice, at least {rules.min_slabs_per_step} slabs in a step of "
        f"{effective_batch} slices: {depth} is the largest divisor of {effective_batch} within both"
    )
    if mixing == "mixer" and depth < min_mixed:
        enough = next(divisor for divisor in divisors if divisor >= min(min_mixed, effective_batch))
        return Decision(enough, f"{why}, but the slice mixer needs at least {min_mixed}: {enough}")
    return Decision(depth, why)
