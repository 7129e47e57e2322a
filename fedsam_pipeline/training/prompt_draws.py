"""Prompts as a person might give them, drawn from the labels of a slab."""

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.model.objects import inner_pixel, slice_objects
from fedsam_pipeline.model.prompts import ImagePrompt, PromptKind
from fedsam_pipeline.specs.plans import Plans

NEGATIVE_SHARE = 0.25
"""how often a class that is marked with points on a slice gets a negative point, too: so rarely that points alone stay the rule"""


def draw_prompts(labels: NDArray[np.int64], plans: Plans, generator: np.random.Generator) -> list[list[ImagePrompt]]:
    """Prompts for one slab: slice by slice, one for each object (connected component) of the classes that keep theirs.

    A class loses all its prompts in this slab with probability ``plans.prompts.dropout``: no prompt says nothing about a class, and a slab
    that lost all is a prompt-free one. With points, some classes get a negative point as well.

    Args:
        labels: (D, size, size) at the encoder's image size.
        plans: mode ``box`` or ``point``, jitter and dropout.
        generator: source of all randomness.

    Returns:
        D lists.
    """
    assert plans.prompts.mode != "auto"
    kept = [label for label in range(1, plans.num_classes) if generator.random() >= plans.prompts.dropout]
    jitter = jitter_pixels(plans)
    prompts: list[list[ImagePrompt]] = []
    for plane in labels:
        found = []
        for label in kept:
            objects = [_prompt(pixels, label, plans.prompts.mode, jitter, plane.shape, generator) for pixels in slice_objects(plane, label)]
            if objects and plans.prompts.mode == "point" and generator.random() < NEGATIVE_SHARE:
                objects += _negative_points(plane, label, generator)
            found += objects
        prompts.append(found)
    return prompts


def jitter_pixels(plans: Plans) -> tuple[float, float]:
    """The plan's jitter in pixels (y, x) of the encoder's input."""
    height, width = (length for axis, length in enumerate(plans.target_spacing) if axis != plans.slice_axis)
    y, x = (
        plans.prompts.jitter_mm / length * plans.image_size / voxels for length, voxels in zip((height, width), plans.window, strict=True)
    )
    return y, x


def _prompt(
    pixels: NDArray[np.int64],
    label: int,
    kind: PromptKind,
    jitter: tuple[float, float],
    shape: tuple[int, ...],
    generator: np.random.Generator,
) -> ImagePrompt:
    """A prompt for the object of these (N, 2) pixels (y, x)."""
    if kind == "box":
        moved = generator.uniform(-1, 1, size=(2, 2)) * jitter
        ends = np.stack([pixels.min(axis=0), pixels.max(axis=0)])
        corners = np.clip(np.sort(ends + moved, axis=0), 0, np.array(shape) - 1)
        (top, left), (bottom, right) = corners.tolist()
        return ImagePrompt("box", label, (left, top, right, bottom))
    wanted = pixels.mean(axis=0) + generator.uniform(-1, 1, size=2) * jitter
    y, x = inner_pixel(pixels, wanted)
    return ImagePrompt("point", label, (x, y, x, y))


def _negative_points(plane: NDArray[np.int64], label: int, generator: np.random.Generator) -> list[ImagePrompt]:
    """A point beside the class, where a person would correct a mask: no further from its box than that is long; none without such a pixel.

    Nor on ignored voxels (below 0): nobody knows what they are.
    """
    inside = np.argwhere(plane == label)
    first, last = inside.min(axis=0), inside.max(axis=0) + 1
    margin = last - first
    (top, left), (bottom, right) = np.maximum(first - margin, 0), last + margin
    near = plane[top:bottom, left:right]
    outside = np.argwhere((near != label) & (near >= 0))
    if not len(outside):
        return []
    y, x = (outside[generator.integers(len(outside))] + (top, left)).tolist()
    return [ImagePrompt("negative_point", label, (x, y, x, y))]
