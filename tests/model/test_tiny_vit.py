"""TinyViT: folding, padding, shapes; and LiteMedSAM's weights in it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedsam_pipeline.model.checkpoints import read_checkpoint
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.tiny_vit import ConvNorm, TinyViT


def small_encoder() -> TinyViT:
    torch.manual_seed(0)
    encoder = TinyViT((8, 16, 16, 16), (1, 1, 1, 1), (1, 2, 2, 2), (7, 7, 7, 7), 32)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after training, not the identity
            module.running_mean = torch.randn_like(module.running_mean)  # type: ignore[arg-type]
            module.running_var = torch.rand_like(module.running_var) + 0.5  # type: ignore[arg-type]
    return encoder.eval()


def test_embeddings_are_a_quarter_of_the_image() -> None:
    assert small_encoder()(torch.randn(2, 3, 28, 56)).shape == (2, 32, 7, 14)


def test_folding_batch_norm_keeps_the_outputs_and_is_idempotent() -> None:
    encoder, images = small_encoder(), torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        before = encoder(images)
        encoder.fold_batch_norm()
        folded = encoder(images)
        encoder.fold_batch_norm()
        again = encoder(images)
    torch.testing.assert_close(folded, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(folded, again)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())


def test_training_mode_leaves_batch_norm_frozen() -> None:
    layer = ConvNorm(3, 4).train()
    assert isinstance(layer.bn, nn.BatchNorm2d)
    before = layer.bn.running_mean.clone()  # type: ignore[union-attr]
    layer(torch.randn(2, 3, 8, 8) + 5)
    assert torch.equal(layer.bn.running_mean, before)  # type: ignore[arg-type]


def test_sides_that_are_no_multiple_of_the_window_are_padded() -> None:
    assert small_encoder()(torch.randn(1, 3, 36, 40)).shape == (1, 32, 9, 10)


@pytest.mark.weights
def test_lite_medsam_loads_strictly(weights: Path) -> None:
    spec = base_model_spec("lite_medsam")
    state = read_checkpoint(spec, weights)
    encoder = {name.removeprefix("image_encoder."): tensor for name, tensor in state.items() if name.startswith("image_encoder.")}
    shape = spec.encoder_shape
    module = TinyViT(shape.embed_dims, shape.depths, shape.heads, shape.windows, 256)
    result = module.load_state_dict(encoder, strict=True)
    assert len(encoder) == 298
    assert not result.missing_keys
    assert not result.unexpected_keys
