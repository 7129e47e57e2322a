"""From class scores at target spacing to a mask in the scanner's own grid, slice by slice."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import from_canonical
from fedsam_pipeline.preprocessing.resample import linear_steps
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import Plans


class NativeSink(Protocol):
    """Takes the scores of the native slices, beside the mask that is made of them."""

    def add(self, scores: torch.Tensor) -> None:
        """(K, h, w) float32 of the next slice of the crop, native grid, canonical axes."""
        ...


def original_geometry(properties: CaseProperties) -> Geometry:
    """The grid of the image's file."""
    return Geometry(properties.original_size, properties.original_spacing, properties.original_origin, tuple(properties.original_direction))


def native_slices(parts: Iterable[NDArray[np.float32]], properties: CaseProperties, num_classes: int) -> Iterator[torch.Tensor]:
    """Resamples scores from the plan's grid to the image's own, trilinearly, and holds two slices of them at a time.

    Linear interpolation is separable: every slice is resized in its plane once, and a native slice lies between two of them. Equals
    ``resample`` of the whole volume to float32's precision.

    Args:
        parts: (n, K, H, W) of the next n slices, S in all. They may be overwritten once the next one is asked for.
        properties: what preprocessing did to the case.
        num_classes: K.

    Yields:
        (K, h, w) float32 of every slice of the native crop along the slice axis, in order; not to be written to.

    Raises:
        ValueError: the scores have another shape than the preprocessed case, or another number of classes.
    """
    axis = properties.slice_axis
    slices, height, width = properties.stored_size
    plane = [length for other, length in enumerate(properties.crop_size) if other != axis]
    low, high, weight = linear_steps(slices, properties.crop_size[axis])
    high = np.where(weight == 0, low, high)
    needed = {*low.tolist(), *high.tolist()}
    resized: dict[int, torch.Tensor] = {}
    at = following = 0  # of the slices that come, and of those that go
    for part in parts:
        if part.shape[1:] != (num_classes, height, width) or at + len(part) > slices:
            raise ValueError(
                f"scores of {part.shape[1]} classes and {at + len(part)} slices of {part.shape[2:]} do not fit a case of shape "
                f"{(num_classes, slices, height, width)}"
            )
        for scores in part:
            if at in needed:
                here = torch.from_numpy(scores)
                if scores.shape[1:] == tuple(plane):
                    resized[at] = here.clone()
                else:
                    resized[at] = functional.interpolate(here[None], size=plane, mode="bilinear", align_corners=False)[0]
            at += 1
            while following < len(low) and high[following] < at:
                before, after = resized[int(low[following])], resized[int(high[following])]
                yield before if weight[following] == 0 else torch.lerp(before, after, float(weight[following]))
                following += 1
                for old in [index for index in resized if following == len(low) or index < low[following]]:
                    del resized[old]
    if at != slices:
        raise ValueError(f"scores of {at} slices do not fit a case of shape {(num_classes, slices, height, width)}")


def export_stream(
    parts: Iterable[NDArray[np.float32]], properties: CaseProperties, plans: Plans, sink: NativeSink | None = None
) -> NDArray[np.unsignedinteger]:
    """Undoes preprocessing: slice axis back, resample to the crop, arg max, paste into the volume, original axes.

    In memory are the mask, once more while its axes are turned, and for three slices the scores of all classes: with M native voxels
    2 M bytes (4 M beyond 256 classes) and 12 K bytes for each voxel of a native slice. Voxels outside the crop are background; a tie goes
    to the smaller class.

    Args:
        parts: (n, K, H, W) of the next n slices, logits or probabilities, as in ``native_slices``.
        properties: what preprocessing did to the case.
        plans: the plan.
        sink: is given the scores on the native grid.

    Returns:
        (Z, Y, X) on the image's own grid (not canonical), class numbers; uint8, uint16 for more than 256 classes.

    Raises:
        ValueError: as ``native_slices``.
    """
    dtype = np.uint8 if plans.num_classes <= 256 else np.uint16
    canonical = np.zeros(properties.canonical_size, dtype=dtype)
    inside = tuple(slice(start, start + size) for start, size in zip(properties.crop_start, properties.crop_size, strict=True))
    crop = np.moveaxis(canonical[inside], properties.slice_axis, 0)
    for labels, scores in zip(crop, native_slices(parts, properties, plans.num_classes), strict=True):
        labels[...] = _winner(scores)
        if sink is not None:
            sink.add(scores)
    return np.ascontiguousarray(from_canonical(canonical, original_geometry(properties)), dtype=dtype)


def _winner(scores: torch.Tensor) -> NDArray[np.int32]:
    """(K, h, w) to the class with the largest score, class by class; the smaller one where two are equal."""
    best = scores[0].clone()
    winner = torch.zeros(best.shape, dtype=torch.int32)
    for label, score in enumerate(scores[1:], start=1):
        winner.masked_fill_(score > best, label)
        torch.maximum(best, score, out=best)
    result: NDArray[np.int32] = winner.numpy()
    return result
