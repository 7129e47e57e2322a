"""Prompts on a preprocessed volume, and what a window of one slice sees of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedsam_pipeline.model.prompts import ImagePrompt, PromptKind
from fedsam_pipeline.preprocessing.views import AS_STORED, Order


@dataclass(frozen=True)
class VolumePrompt:
    """A box or a point for one class, in voxels of the plan's grid (S, H, W), 0 the centre of the first.

    Attributes:
        kind: a point, also a negative one, has ``first == last``.
        label: the class it asks for, 1 or more.
        first, last: opposite corners (s, h, w), the centres of a box's outermost voxels; ``slices`` says which slices are prompted.
    """

    kind: PromptKind
    label: int
    first: tuple[float, float, float]
    last: tuple[float, float, float]
    own_slice_only: bool = False
    """one of many that were made slice by slice: in a view across the slices they would crowd on one image"""

    @property
    def slices(self) -> range:
        """From ``round(first[0])`` to ``round(last[0])``."""
        return range(round(self.first[0]), round(self.last[0]) + 1)


def by_slice(prompts: Sequence[VolumePrompt]) -> Mapping[int, Sequence[VolumePrompt]]:
    """Slice to its prompts; nothing for slices without any."""
    found: dict[int, list[VolumePrompt]] = {}
    for prompt in prompts:
        for index in prompt.slices:
            found.setdefault(index, []).append(prompt)
    return found


def turned_prompts(prompts: Sequence[VolumePrompt], order: Order) -> list[VolumePrompt]:
    """The same prompts in a view whose axes are these of (S, H, W).

    A box on a single slice is a line in the views across it, which says nothing of the object's extent there: they do without it, and
    without prompts of ``own_slice_only``.
    """
    (a, b, c) = order
    return [
        replace(each, first=(each.first[a], each.first[b], each.first[c]), last=(each.last[a], each.last[b], each.last[c]))
        for each in prompts
        if order == AS_STORED or not (each.own_slice_only or (each.kind == "box" and len(each.slices) == 1))
    ]


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
        if slice_index not in prompt.slices:
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
