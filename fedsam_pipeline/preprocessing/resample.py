"""Resampling of volumes and labels to another size; the field of view stays the same.

Voxel centres are placed as ``align_corners=False`` does, and as scikit-image's ``resize`` (nnU-Net's resampling) does: the outer faces of
the first and last voxels coincide on both grids. Beyond the outermost centres the border value is repeated.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

Size = tuple[int, int, int]

COARSE_RATIO = 3.0
"""nnU-Net's threshold: a spacing more than this many times the finest one makes its axis coarse"""


def resampled_size(size: Sequence[int], spacing: Sequence[float], target_spacing: Sequence[float]) -> Size:
    """Size in voxels after resampling: ``round(size * spacing / target)``, at least 1, as in nnU-Net. All ordered (z, y, x)."""
    z, y, x = (max(1, round(length * old / new)) for length, old, new in zip(size, spacing, target_spacing, strict=True))
    return z, y, x


def coarse_axis(spacing: Sequence[float], target_spacing: Sequence[float]) -> int | None:
    """The axis to interpolate apart from the others, or ``None`` (nnU-Net's ``determine_do_sep_z_and_axis``).

    It is the one axis of largest spacing where that is more than ``COARSE_RATIO`` times the smallest, in the image or else at the target.
    """
    for lengths in (spacing, target_spacing):
        if max(lengths) / min(lengths) > COARSE_RATIO:
            coarsest = [axis for axis, length in enumerate(lengths) if length == max(lengths)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample(
    array: NDArray[np.float32], size: Sequence[int], order: int = 1, *, coarse_axis: int | None = None, coarse_order: int = 0
) -> NDArray[np.float32]:
    """Interpolates a volume to another size.

    Args:
        array: (C, Z, Y, X).
        size: new (Z, Y, X).
        order: 0 nearest, 1 linear, 3 cubic spline. A spline overshoots at edges: its values are clipped to the range of the input, of each
            channel or of each slice across ``coarse_axis``, as scikit-image's ``resize`` does in nnU-Net's hands.
        coarse_axis: an axis (0, 1, 2) along which ``coarse_order`` is used instead: nnU-Net's rule for anisotropic volumes, where
            interpolating between distant slices would invent tissue. ``None``: one order for all axes.
        coarse_order: the order along ``coarse_axis``.

    Returns:
        (C, *size), float32; the input itself (no copy) where the size is unchanged.

    Raises:
        ValueError: another order, or a shape that is not (C, Z, Y, X).
    """
    target = _checked(array, size, order, coarse_order)
    if array.shape[1:] == target:
        return np.asarray(array, dtype=np.float32)
    if coarse_axis is None or coarse_order == order:
        return _resample_once(array, target, order)
    in_plane = tuple(array.shape[1 + axis] if axis == coarse_axis else target[axis] for axis in range(3))
    if coarse_order == 0 and target[coarse_axis] < array.shape[1 + coarse_axis]:  # the same slices, and fewer of them to interpolate
        along = tuple(target[axis] if axis == coarse_axis else array.shape[1 + axis] for axis in range(3))
        array, in_plane = _resample_once(array, along, coarse_order), target
    if order == 3 and array.shape[1:] != in_plane:
        array = _cubic_slices(array, in_plane, coarse_axis)
    return _resample_once(_resample_once(array, in_plane, order), target, coarse_order)


def resample_labels(
    labels: NDArray[Any], size: Sequence[int], order: int = 1, *, coarse_axis: int | None = None, coarse_order: int = 0
) -> NDArray[Any]:
    """Resamples a label map (Z, Y, X) to ``size``; values and dtype are kept.

    Order 1 interpolates each class's mask linearly and keeps, voxel by voxel, the class with the largest share: a running maximum, for
    each class in the box that it lies in. Ties go to the smaller label, so to ignored voxels (-1) before all. Order 0
    takes the nearest voxel. Where ``resample`` takes the nearest slice along the image's ``coarse_axis``, labels come from the same slice.

    Raises:
        ValueError: another order, or a shape that is not (Z, Y, X).
    """
    target = _checked(labels[None], size, order, coarse_order)
    if order == 3:
        raise ValueError("labels are resampled with order 0 or 1")
    if labels.shape == target:
        return labels
    if coarse_axis is not None and coarse_order == 0:
        labels = np.take(labels, _nearest(labels.shape[coarse_axis], target[coarse_axis]), axis=coarse_axis)
    values = np.unique(labels)
    if order == 0 or len(values) == 1:
        index = [_nearest(old, new) for old, new in zip(labels.shape, target, strict=True)]
        return np.ascontiguousarray(labels[np.ix_(*index)])
    common = 0 if 0 in values else values[0]
    result = np.full(target, common, dtype=labels.dtype)
    steps = [linear_steps(old, new) for old, new in zip(labels.shape, target, strict=True)]
    near = _near(labels != common, steps)
    if any(not len(touched) for touched in near):  # all that is not background lies between the new voxels' centres
        return result
    box, source, steps = _cut(steps, near)
    inside, found = labels[source], result[box]
    best = _share(inside == values[0], steps)
    found[...] = values[0]
    for value in values[1:]:
        mask = inside == value
        near = _near(mask, steps)
        if all(len(touched) for touched in near):  # elsewhere it has no share
            box, source, own = _cut(steps, near)
            share, largest = _share(mask[source], own), best[box]
            found[box][(share > largest).numpy()] = value
            torch.maximum(largest, share, out=largest)
    return result


Box = tuple[slice, ...]
Steps = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""for each new voxel of an axis: the old voxel before its centre, the one after, and the weight of the latter"""


def linear_steps(old: int, new: int) -> Steps:
    """Linear interpolation along one axis of ``old`` voxels to ``new`` ones."""
    centres = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = centres.astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (centres - low).astype(np.float32)


def _near(occupied: NDArray[np.bool_], steps: Sequence[Steps]) -> list[NDArray[np.int64]]:
    """For each axis of ``occupied`` (Z, Y, X), the new voxels that an occupied old one contributes to."""
    near = []
    for axis, (low, high, _) in enumerate(steps):
        planes = occupied.any(axis=tuple(other for other in range(3) if other != axis))
        between = np.concatenate([[0], np.cumsum(planes)])
        near.append(np.flatnonzero(between[high + 1] > between[low]))
    return near


def _cut(steps: Sequence[Steps], near: Sequence[NDArray[np.int64]]) -> tuple[Box, Box, list[Steps]]:
    """The box of the new voxels from the first to the last of ``near``, that of the old ones that they need, and their steps in it."""
    box = tuple(slice(int(touched[0]), int(touched[-1]) + 1) for touched in near)
    source = tuple(slice(int(low[part][0]), int(high[part][-1]) + 1) for (low, high, _), part in zip(steps, box, strict=True))
    inside = [
        (low[part] - old.start, high[part] - old.start, weight[part])
        for (low, high, weight), part, old in zip(steps, box, source, strict=True)
    ]
    return box, source, inside


def _share(mask: NDArray[np.bool_], steps: Sequence[Steps]) -> torch.Tensor:
    """What a mask (Z, Y, X) has of every new voxel, interpolated linearly along all axes."""
    share = torch.from_numpy(mask.astype(np.float32))
    for axis, (low, high, weight) in enumerate(steps):
        share = _between(share, axis, low, high, weight)
    return share


def _between(volume: torch.Tensor, axis: int, low: NDArray[np.int64], high: NDArray[np.int64], weight: NDArray[np.float32]) -> torch.Tensor:
    """Interpolates (Z, Y, X) along one axis."""
    if len(weight) == volume.shape[axis] and not weight.any():
        return volume
    shape = [1, 1, 1]
    shape[axis] = len(weight)
    before, after = volume.index_select(axis, torch.from_numpy(low)), volume.index_select(axis, torch.from_numpy(high))
    return before.lerp_(after, torch.from_numpy(weight).reshape(shape))


def _checked(array: NDArray[Any], size: Sequence[int], order: int, coarse_order: int) -> Size:
    if array.ndim != 4 or len(size) != 3 or min(*array.shape, *size) < 1:
        raise ValueError(f"cannot resample an array of shape {array.shape} to {tuple(size)}")
    if order not in (0, 1, 3) or coarse_order not in (0, 1, 3):
        raise ValueError(f"interpolation orders are 0, 1 and 3, not {order} and {coarse_order}")
    return int(size[0]), int(size[1]), int(size[2])


def _resample_once(array: NDArray[np.float32], size: Sequence[int], order: int) -> NDArray[np.float32]:
    target = (int(size[0]), int(size[1]), int(size[2]))
    if array.shape[1:] == target:
        return array
    if order == 0:
        for axis, (old, new) in enumerate(zip(array.shape[1:], target, strict=True), 1):
            if old != new:
                array = array.take(_nearest(old, new), axis=axis)
        return np.ascontiguousarray(array, dtype=np.float32)
    if order == 1:
        return _linear(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), target).numpy()
    return _cubic(array, target)


def _cubic_slices(array: NDArray[np.float32], size: Sequence[int], axis: int) -> NDArray[np.float32]:
    """(C, Z, Y, X) to (C, *size), the slices across an axis that keeps its length each by themselves."""
    slices = np.moveaxis(array, 1 + axis, 1)
    in_plane = [length for other, length in enumerate(size) if other != axis]
    resized = _cubic(slices.reshape(-1, *slices.shape[2:]), in_plane)
    return np.moveaxis(resized.reshape(*slices.shape[:2], *in_plane), 1, 1 + axis)


def _cubic(arrays: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    """(N, ...) to (N, *size), cubic splines, clipped to the range of each of the N arrays."""
    factors = [new / old for old, new in zip(arrays.shape[1:], size, strict=True)]
    result = np.empty((len(arrays), *size), dtype=np.float32)
    for array, output in zip(arrays, result, strict=True):  # grid_mode: voxel faces, not centres, keep their places
        ndimage.zoom(array, factors, output=output, order=3, mode="nearest", grid_mode=True)
        np.clip(output, array.min(), array.max(), out=output)
    return result


def _linear(volume: torch.Tensor, size: Size) -> torch.Tensor:
    """(C, Z, Y, X) to (C, *size), trilinear."""
    if volume.shape[1] == size[0]:  # slice by slice: half the taps
        return functional.interpolate(volume, size=size[1:], mode="bilinear", align_corners=False)
    return functional.interpolate(volume[None], size=size, mode="trilinear", align_corners=False)[0]


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """For each of ``new`` voxels, the index of the old voxel that its centre lies in."""
    centres = (np.arange(new, dtype=np.float64) + 0.5) * (old / new)
    return np.minimum(centres.astype(np.int64), old - 1)
