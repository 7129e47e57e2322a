"""An image encoder in two parts: what nothing trained lies below, whose output for an image never changes, and the rest.

Where the first part is frozen, a training step on an image seen before can begin with the second (PEFT-SAM's late LoRA, Teuber et al., MIDL
2025, arXiv:2502.00418, leaves the earlier half of the encoder frozen; decoder fine-tuning leaves all of it).
"""

import hashlib
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsam_pipeline.model.compilation import is_compiled
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.tiny_vit import TinyViT

ENCODER = "image_encoder."


class EncoderStep(NamedTuple):
    """One of the parts that an encoder computes one after the other."""

    names: tuple[str, ...]
    """what its tensors' names begin with, within the encoder"""
    run: Callable[[Tensor], Tensor]

    def owns(self, name: str) -> bool:
        """Whether the encoder's tensor of this name is this step's."""
        return name.startswith(self.names)


def encoder_steps(encoder: nn.Module) -> list[EncoderStep]:
    """The embedding of the patches, every block, every merging and the neck, in order: one after the other they are the encoder."""
    if isinstance(encoder, TinyViT):
        steps = [EncoderStep(("patch_embed.",), lambda x: encoder.patch_embed(x.contiguous(memory_format=torch.channels_last)))]
        for i, stage in enumerate(encoder.layers):
            blocks = stage.get_submodule("blocks")
            steps += [EncoderStep((f"layers.{i}.blocks.{j}.",), block) for j, block in enumerate(blocks.children())]
            if stage.downsample is not None:
                steps.append(EncoderStep((f"layers.{i}.downsample.",), stage.get_submodule("downsample")))
        return [*steps, EncoderStep(("neck.",), encoder.neck)]
    embed, neck, place = encoder.get_submodule("patch_embed"), encoder.get_submodule("neck"), encoder.get_parameter("pos_embed")
    blocks = encoder.get_submodule("blocks")
    return [
        EncoderStep(("patch_embed.", "pos_embed"), lambda x: embed(x) + place),
        *(EncoderStep((f"blocks.{j}.",), block) for j, block in enumerate(blocks.children())),
        EncoderStep(("neck.",), lambda x: neck(x.permute(0, 3, 1, 2))),
    ]


def frozen_steps(encoder: nn.Module, trained: Collection[str]) -> int:
    """How many of the encoder's first steps hold no tensor among ``trained`` (names of the whole model)."""
    own = [name.removeprefix(ENCODER) for name in trained if name.startswith(ENCODER)]
    steps = encoder_steps(encoder)
    return next((i for i, step in enumerate(steps) if any(step.owns(name) for name in own)), len(steps))


class EncoderSplit:
    """A model's encoder, cut before the first step that trains.

    Args:
        model: with its adapter.
        trained: names of the tensors that train in any round.

    Raises:
        ValueError: the first step trains, so there is nothing before the cut.
    """

    def __init__(self, model: PromptFreeSam, trained: Collection[str]) -> None:
        self._model = model
        steps, cut = encoder_steps(model.image_encoder), frozen_steps(model.image_encoder, trained)
        if not cut:
            raise ValueError("the encoder trains from its first step on: nothing of it can be computed beforehand")
        self._frozen, self._rest = steps[:cut], steps[cut:]

    @torch.no_grad()
    def before(self, images: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) to what the first trained step takes: (N, h, w, C) between ViT's blocks, else (N, C, h, w)."""
        x = images * self._model.input_scale + self._model.input_shift
        for step in self._frozen:
            x = step.run(x)
        return x

    def after(self, features: Tensor) -> Tensor:
        """What ``before`` returned to embeddings (N, dim, H / stride, W / stride)."""
        for step in self._rest:
            features = step.run(features)
        return features

    @property
    def compiled(self) -> bool:
        """Whether the encoder's blocks are compiled: their outputs then differ in rounding."""
        return is_compiled(self._model)

    def sha256(self) -> str:
        """Of every weight and buffer that ``before`` computes with: its outputs for the same images are the same where this is."""
        digest = hashlib.sha256()
        encoder = self._model.image_encoder
        named: dict[str, Tensor] = dict((*encoder.named_parameters(), *encoder.named_buffers()))
        own = {name: tensor for name, tensor in named.items() if any(step.owns(name) for step in self._frozen)}
        own |= {"input_scale": self._model.input_scale, "input_shift": self._model.input_shift}
        for name, tensor in sorted(own.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
