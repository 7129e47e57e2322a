"""Prompts of a batch of images: boxes and points, each for one class, as the tokens of SAM's prompt encoder."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from fedsam_pipeline.model.sam_modules import PromptEncoder

PromptKind = Literal["box", "point"]


class ImagePrompt(NamedTuple):
    """One prompt on one image."""

    kind: PromptKind
    label: int
    """the class it asks for, 1 or more"""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels, 0 the centre of the first; a point has x0 = x1, y0 = y1"""


class Prompts(NamedTuple):
    """The prompts of N images, at most P each. An image without any is segmented prompt-free."""

    boxes: Tensor
    """(N, P, 4) float32: x0, y0, x1, y1 in pixels of the encoder's input"""
    points: Tensor
    """(N, P) boolean: points rather than boxes"""
    classes: Tensor
    """(N, P) int64: the class asked for; 0 where there is no prompt"""

    @classmethod
    def of(cls, images: Sequence[Sequence[ImagePrompt]]) -> Self | None:
        """The prompts of each image; ``None`` where no image has any."""
        most = max((len(prompts) for prompts in images), default=0)
        if not most:
            return None
        boxes, points = torch.zeros(len(images), most, 4), torch.zeros(len(images), most, dtype=torch.bool)
        classes = torch.zeros(len(images), most, dtype=torch.int64)
        for row, prompts in enumerate(images):
            for column, prompt in enumerate(prompts):
                boxes[row, column] = torch.tensor(prompt.box)
                points[row, column], classes[row, column] = prompt.kind == "point", prompt.label
        return cls(boxes, points, classes)

    def to(self, device: torch.device | str) -> "Prompts":
        """On another device."""
        return Prompts(*(tensor.to(device) for tensor in self))

    def rows(self, chosen: slice | Tensor) -> "Prompts":
        """Of some of the images."""
        return Prompts(*(tensor[chosen] for tensor in self))


_NONE, _POINT, _FIRST_CORNER, _SECOND_CORNER = range(4)


def prompt_tokens(encoder: PromptEncoder, prompts: Prompts, class_embedding: nn.Embedding) -> Tensor:
    """Two tokens a prompt, exactly SAM's: the corners of a box, or a point and "not a point", which also stands for a missing prompt.

    To tell whose prompt it is, the embedding of its class is added, zero at round 0.

    Args:
        encoder: SAM's.
        prompts: of N images.
        class_embedding: (K, dim).

    Returns:
        (N, 2 * P, dim).
    """
    number, most, _ = prompts.boxes.shape
    corners = prompts.boxes.reshape(number, 2 * most, 2)
    asked = prompts.classes > 0
    first = torch.where(prompts.points, _POINT, _FIRST_CORNER) * asked
    second = torch.where(prompts.points, _NONE, _SECOND_CORNER) * asked
    kinds = torch.stack([first, second], dim=-1).flatten(1)
    place = encoder.pe_layer.forward_with_coords(corners + 0.5, encoder.input_image_size)  # SAM's pixel centres
    known = (kinds != _NONE)[..., None]
    embeddings = torch.cat([encoder.not_a_point_embed.weight, *(encoder.point_embeddings[index].weight for index in (1, 2, 3))])
    classes = class_embedding(prompts.classes).repeat_interleave(2, dim=1)
    return embeddings[kinds] + (place + classes) * known  # type: ignore[no-any-return]
