"""Prompts of a batch of images: boxes and points, each for one class, as the tokens of SAM's prompt encoder."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from fedsam_pipeline.model.sam_modules import PromptEncoder

PromptKind = Literal["box", "point", "negative_point"]
"""a negative point says where the class is not"""


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
    """(N, P) boolean: points, also negative ones, rather than boxes"""
    negative: Tensor
    """(N, P) boolean: negative points"""
    classes: Tensor
    """(N, P) int64: the class asked for; 0 where there is no prompt"""

    @classmethod
    def of(cls, images: Sequence[Sequence[ImagePrompt]]) -> Self | None:
        """The prompts of each image; ``None`` where no image has any."""
        most = max((len(prompts) for prompts in images), default=0)
        if not most:
            return None
        boxes = torch.zeros(len(images), most, 4)
        points, negative = torch.zeros(2, len(images), most, dtype=torch.bool)
        classes = torch.zeros(len(images), most, dtype=torch.int64)
        for row, prompts in enumerate(images):
            for column, prompt in enumerate(prompts):
                boxes[row, column] = torch.tensor(prompt.box)
                points[row, column], negative[row, column] = prompt.kind != "box", prompt.kind == "negative_point"
                classes[row, column] = prompt.label
        return cls(boxes, points, negative, classes)

    def to(self, device: torch.device | str) -> "Prompts":
        """On another device."""
        return Prompts(*(tensor.to(device) for tensor in self))

    def rows(self, chosen: slice | Tensor) -> "Prompts":
        """Of some of the images."""
        return Prompts(*(tensor[chosen] for tensor in self))


_NONE, _NEGATIVE_POINT, _POINT, _FIRST_CORNER, _SECOND_CORNER = range(5)


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
    kind_of_point = torch.where(prompts.negative, _NEGATIVE_POINT, _POINT)
    first = torch.where(prompts.points, kind_of_point, _FIRST_CORNER) * asked
    second = torch.where(prompts.points, _NONE, _SECOND_CORNER) * asked
    kinds = torch.stack([first, second], dim=-1).flatten(1)
    place = encoder.pe_layer.forward_with_coords(corners + 0.5, encoder.input_image_size)  # SAM's pixel centres
    known = (kinds != _NONE)[..., None]
    embeddings = torch.cat([encoder.not_a_point_embed.weight, *(embedding.weight for embedding in encoder.point_embeddings)])
    classes = class_embedding(prompts.classes).repeat_interleave(2, dim=1)
    return embeddings[kinds] + (place + classes) * known  # type: ignore[no-any-return]
