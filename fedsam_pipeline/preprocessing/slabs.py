"""From a stored volume to what the encoder sees: the one code path that training and inference share.

Volumes are (C, S, H, W): channels, slices along the plan's slice axis, height, width, at target spacing and normalized. A slab is a run of
consecutive slices; a window is its in-plane crop. All functions are pure.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from fedsam_pipeline.specs.plans import Plans

PADDING_VALUE = 0.0
"""What surrounds a volume that is smaller than the window: the mean of a normalized image"""


class SliceableVolume(Protocol):
    """A NumPy array or a lazily decompressed blosc2 array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any, /) -> Any: ...


def read_slab(
    volume: SliceableVolume,
    first_slice: int,
    depth: int,
    margin: int = 0,
    *,
    origin: tuple[int, int] | None = None,
    window: tuple[int, int] | None = None,
    fill: float = PADDING_VALUE,
) -> torch.Tensor:
    """Reads slices ``first_slice - margin .. first_slice + depth + margin - 1``, and no other part of the volume.

    Slices beyond either end repeat the end slice, so that a slice at the border has neighbours to look at. In the plane, what lies
    outside the volume is ``fill``.

    Args:
        volume: (..., S, H, W), for example (C, S, H, W) of an image or (S, H, W) of labels.
        first_slice: first slice of the slab, before the margin.
        depth: slices of the slab.
        margin: slices to add on both sides (``plans.max_offset``).
        origin: (top, left) of the window; may be negative. ``None``: the whole plane.
        window: (height, width) of the window; given together with ``origin``.
        fill: value outside the plane.

    Returns:
        (..., depth + 2 * margin, H, W) or (..., depth + 2 * margin, height, width); float32 for floating point volumes, else int64.

    Raises:
        ValueError: an empty volume or slab, or only one of ``origin`` and ``window``.
    """
    num_slices, height, width = volume.shape[-3:]
    if min(num_slices, height, width, depth) < 1 or margin < 0:
        raise ValueError(f"cannot cut a slab of {depth} slices (margin {margin}) from a volume of shape {volume.shape}")
    if (origin is None) != (window is None):
        raise ValueError("origin and window belong together")
    wanted = np.clip(np.arange(first_slice - margin, first_slice + depth + margin), 0, num_slices - 1)
    first, last = int(wanted[0]), int(wanted[-1])
    top, left, rows, columns = 0, 0, slice(0, height), slice(0, width)
    if origin is not None and window is not None:
        rows, columns = _inside(origin[0], window[0], height), _inside(origin[1], window[1], width)
        top, left = origin[0] - rows.start, origin[1] - columns.start
    leading = (slice(None),) * (len(volume.shape) - 3)  # spelled out: lazy arrays need not know "..."
    block = np.asarray(volume[(*leading, slice(first, last + 1), rows, columns)])
    block = block.astype(np.float32 if np.issubdtype(block.dtype, np.floating) else np.int64, copy=False)
    slab = torch.from_numpy(np.ascontiguousarray(block[..., wanted - first, :, :]))
    return slab if window is None else crop_or_pad(slab, (top, left), window, fill)


def encoder_inputs(stack: torch.Tensor, plans: Plans) -> torch.Tensor:
    """Turns a slab with its margin into the three-channel images of the encoder.

    Input ``i`` of slice ``s`` is the mean of ``stack[channel, s + offset]`` over the terms of ``plans.encoder_inputs[i]``. The margin
    is dropped.

    Args:
        stack: (..., C, D + 2 * plans.max_offset, H, W).
        plans: the plan.

    Returns:
        (..., D, 3, H, W), same dtype.

    Raises:
        ValueError: the stack has another number of channels than the plan, or no slice beside its margin.
    """
    margin = plans.max_offset
    depth = stack.shape[-3] - 2 * margin
    if stack.shape[-4] != len(plans.channels) or depth < 1:
        raise ValueError(
            f"a stack of shape {tuple(stack.shape)} does not fit a plan with {len(plans.channels)} channels and a margin of {margin} slices"
        )
    inputs = []
    for terms in plans.encoder_inputs:
        shifted = [stack[..., term.channel, margin + term.offset : margin + term.offset + depth, :, :] for term in terms]
        inputs.append(shifted[0] if len(shifted) == 1 else torch.stack(shifted).mean(dim=0))
    return torch.stack(inputs, dim=-3)


def centred_origin(size: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    """(top, left) of the window in the middle of a plane; negative where the plane is smaller than the window."""
    return (size[0] - window[0]) // 2, (size[1] - window[1]) // 2


def crop_or_pad(images: torch.Tensor, origin: tuple[int, int], window: tuple[int, int], fill: float = PADDING_VALUE) -> torch.Tensor:
    """Cuts the window at ``origin`` = (top, left) out of (..., H, W); what lies outside the plane is ``fill``.

    Returns:
        (..., height, width) of the window, same dtype; a view where nothing was padded.
    """
    height, width = images.shape[-2:]
    rows, columns = _inside(origin[0], window[0], height), _inside(origin[1], window[1], width)
    part = images[..., rows, columns]
    before = _missing_before(origin[0], window[0]), _missing_before(origin[1], window[1])
    after = window[0] - before[0] - part.shape[-2], window[1] - before[1] - part.shape[-1]
    if not any((*before, *after)):
        return part
    return functional.pad(part, (before[1], after[1], before[0], after[0]), value=fill)


def _inside(start: int, length: int, size: int) -> slice:
    """The part of ``start .. start + length`` within ``0 .. size``; empty where they do not meet."""
    first = min(max(start, 0), size)
    return slice(first, max(first, min(start + length, size)))


def _missing_before(start: int, length: int) -> int:
    """How many of the window's voxels lie before the axis."""
    return min(max(-start, 0), length)


def to_image_size(images: torch.Tensor, image_size: int) -> torch.Tensor:
    """Resizes windows (N, C, h, w) to the encoder's square, bilinear (anti-aliased when shrinking); unchanged where they already fit.

    Returns:
        (N, C, image_size, image_size), same dtype.
    """
    return _resize(images, (image_size, image_size))


def from_image_size(logits: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """Resizes logits (N, K, image_size, image_size) back to the window's voxels, bilinear; unchanged where they already fit.

    Returns:
        (N, K, height, width), same dtype.
    """
    return _resize(logits, window)


def labels_to_image_size(labels: torch.Tensor, image_size: int) -> torch.Tensor:
    """Resizes label windows (N, h, w) to the encoder's square, nearest neighbour; unchanged where they already fit.

    Returns:
        (N, image_size, image_size), same dtype.
    """
    if labels.shape[-2:] == (image_size, image_size):
        return labels
    resized = functional.interpolate(labels[:, None].to(torch.float32), size=(image_size, image_size), mode="nearest-exact")
    return resized[:, 0].to(labels.dtype)


def _resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    shrinks = size[0] < images.shape[-2] or size[1] < images.shape[-1]
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
