"""Prediction in the manner of systems that see each slice in a window of five (MA-SAM, Chen et al., Medical Image Analysis 2024), plainly.

For every slice all five of its window are encoded, so that each slice is encoded five times. Float32; ``segment_anything``'s encoder (for
LiteMedSAM: TinyViT with its BatchNorm) and its decoder, one slice at a time; the logits of the whole volume in memory, then arg max.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.reference.tiny_vit import PlainTinyViT
from fedsam_pipeline.model.build import HEAD_SEED
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.vit import published_vit

REACH = 2
"""slices on both sides of the one that is predicted"""


def plain_model(base_model: str, num_classes: int, image_size: int) -> PromptFreeSam:
    """The modules as they are published, with the random weights that the product's model of that name starts from."""
    spec = base_model_spec(base_model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(HEAD_SEED)
        model = PromptFreeSam(spec, num_classes, image_size)
    encoder = published_vit(spec, image_size) if spec.encoder == "vit" else PlainTinyViT(spec)
    encoder.load_state_dict(model.image_encoder.state_dict())
    model.image_encoder = encoder
    return model.eval()


@torch.no_grad()
def predict(model: PromptFreeSam, volume: Tensor, slices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Predicts some slices of a preprocessed volume (S, H, W), whole planes scaled to the model's image size.

    Returns:
        Logits (K, S, H, W) of the whole volume, zero where no slice was asked for, and the mask (n, H, W) of the slices.
    """
    logits = torch.full((model.num_classes, *volume.shape), 0.0)
    for s in slices:
        window = torch.stack([_image(volume, s + step) for step in range(-REACH, REACH + 1)])
        size = (model.image_size, model.image_size)
        inputs = functional.interpolate(window, size=size, mode="bilinear", antialias=True).to(model.input_scale.device)
        embeddings = model.image_encoder(inputs * model.input_scale + model.input_shift)
        masks = functional.interpolate(_decode(model, embeddings[REACH : REACH + 1]), size=volume.shape[1:], mode="bilinear")
        logits[:, s] = masks[0].cpu()
    return logits, logits[:, list(slices)].argmax(dim=0)


def _image(volume: Tensor, s: int) -> Tensor:
    """(3, H, W): a slice between its neighbours; the last one is repeated at the ends."""
    return torch.stack([volume[min(max(s + step, 0), len(volume) - 1)] for step in (-1, 0, 1)])


def _decode(model: PromptFreeSam, embedding: Tensor) -> Tensor:
    """(1, E, h, w) to (1, K, image size, image size)."""
    no_points = embedding.new_zeros(1, 0, embedding.shape[1])
    dense = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(embedding.shape)
    masks: Tensor = model.mask_decoder.predict_masks(embedding, model.prompt_encoder.get_dense_pe(), no_points, dense)[0]
    return masks
