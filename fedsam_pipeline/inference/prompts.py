"""Prompts on a preprocessed volume, and what a window of one slice sees of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from fedsam_pipeline.model.prompts import ImagePrompt, PromptKind
from fedsam_pipeline.preprocessing.views import Order


@dataclass(frozen=True)
class VolumePrompt:
    """A box or a point for one class, in voxels of the plan's grid (S, H, W), 0 the centre of the first.

    Attributes:
        kind: a point has ``first == last``.
        label: the class it asks for, 1 or more.
        first, last: opposite corners (s, h, w); slices from ``round(first[0])`` to ``round(last[0])`` are prompted.
    """

    kind: PromptKind
    label: int
    first: tuple[float, float, float]
    last: tuple[float, float, float]

    def turned(self, order: Order) -> Self:
        """The same prompt in a view whose axes are these of (S, H, W)."""
        (a, b, c), first, last = order, self.first, self.last
        return replace(self, first=(first[a], first[b], first[c]), last=(last[a], last[b], last[c]))


def image_prompts(
    prompts: Sequence[VolumePrompt],
    slice_index: int,
    origin: tuple[int, int],
    window: tuple[int, int],
    image_size: int,
    mirrored: Sequence[int] = (),
) -> list[ImagePrompt]:
    """The prompts of one slice within one window, in pixels of the encoder's input.

    Boxes are cut at the window's sides; what lies outside is left out.

    Args:
        prompts: on the volume.
        slice_index: of the slice.
        origin: (top, left) of the window, voxels.
        window: (height, width), voxels.
        image_size: side of the encoder's input, pixels.
        mirrored: axes of (S, H, W) along which the window is mirrored.
    """
    found = []
    for prompt in prompts:
        if not round(prompt.first[0]) <= slice_index <= round(prompt.last[0]):
            continue
        ends = []
        for axis in (1, 2):
            scale = image_size / window[axis - 1]
            low, high = ((end[axis] - origin[axis - 1] + 0.5) * scale - 0.5 for end in (prompt.first, prompt.last))
            if axis in mirrored:
                low, high = image_size - 1 - high, image_size - 1 - low
            ends.append((max(low, 0.0), min(high, image_size - 1.0)))
        (top, bottom), (left, right) = ends
        if top <= bottom and left <= right:
            found.append(ImagePrompt(prompt.kind, prompt.label, (left, top, right, bottom)))
    return found
