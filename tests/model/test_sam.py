"""The prompt-free model: round 0 is SAM, counts of the published methods, sizes, real weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.build import AdaptedModel, build_adapted, build_base
from fedsam_pipeline.model.checkpoints import load_base, read_checkpoint
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.specs.recipe import Recipe, load_recipe


def build(base: str, *, rank: int = 4, num_classes: int = 3, image_size: int, weights: Path | None = None) -> AdaptedModel:
    return build_adapted(base, load_recipe("flap_sam"), rank=rank, num_classes=num_classes, image_size=image_size, weights=weights)


def test_logits_cover_the_image_at_full_resolution() -> None:
    model = build("tiny_random", image_size=56).model
    assert model(torch.randn(2, 3, 56, 56)).shape == (2, 3, 56, 56)


def test_stride_16_encoders_are_upscaled_to_full_resolution_at_any_size() -> None:
    model = build("vit_b", image_size=224).model
    with torch.no_grad():
        assert model.decode(torch.randn(2, 256, 14, 14)).shape == (2, 3, 224, 224)


def test_flap_sam_has_the_published_number_of_parameters() -> None:
    adapted = build("vit_b", rank=32, image_size=224)
    assert adapted.manifest.trained_parameters == 1_846_384
    lora = sum(entry.num_elements for entry in adapted.manifest.tensors if ".lora_" in entry.name)
    assert lora == 1_368_064
    assert sum(parameter.numel() for parameter in adapted.model.parameters()) - lora == 90_532_927


def test_round_0_is_the_base_model() -> None:
    adapted = build("tiny_random", image_size=28)
    base = build_base(base_model_spec("tiny_random"), num_classes=3, image_size=28, weights=None)
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(adapted.model.encode(images), base.encode(images), rtol=0, atol=1e-6)
        torch.testing.assert_close(adapted.model(images), base(images), rtol=0, atol=1e-6)


def test_a_batch_is_decoded_like_its_images_one_by_one() -> None:
    model = build("tiny_random", image_size=28).model
    embeddings = torch.randn(3, 32, 7, 7)
    with torch.no_grad():
        together = model.decode(embeddings)
        alone = torch.cat([model.decode(embedding[None]) for embedding in embeddings])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_the_adapter_is_seeded_the_same_everywhere() -> None:
    first, second = (build("tiny_random", image_size=28).trained_tensors() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_reach_the_manifest_and_nothing_else() -> None:
    adapted = build("tiny_random", image_size=28)
    adapted.model(torch.randn(1, 3, 28, 28)).square().mean().backward()
    with_gradient = {name for name, parameter in adapted.model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(adapted.manifest.trained_names)


def test_an_image_size_that_does_not_fit_the_windows_is_refused() -> None:
    with pytest.raises(FedsamError, match=r"does not fit the encoder's attention windows[\s\S]*a multiple of 28"):
        PromptFreeSam(base_model_spec("tiny_random"), 3, 30)


def test_a_recipe_for_another_encoder_is_refused() -> None:
    recipe = Recipe.model_validate(load_recipe("flap_sam").model_dump() | {"encoders": ["vit"]})
    with pytest.raises(FedsamError, match="does not fit base model tiny_random"):
        build_adapted("tiny_random", recipe, rank=2, num_classes=3, image_size=28, weights=None)


def test_a_tensor_of_the_wrong_shape_is_refused() -> None:
    adapted = build("tiny_random", image_size=28)
    name = adapted.manifest.trained_names[0]
    with pytest.raises(FedsamError, match="does not fit the model"):
        adapted.load_tensors({name: torch.zeros(1)})


def test_importing_segment_anything_stays_the_users_business() -> None:
    assert "segment_anything" not in sys.modules


def test_a_vit_checkpoint_is_resized_to_another_image_size() -> None:
    torch.manual_seed(0)
    spec = base_model_spec("vit_b")
    shape = spec.encoder_shape.model_copy(update={"embed_dims": (24,), "depths": (2,), "heads": (2,), "global_attention": (1,)})
    small = spec.model_copy(update={"encoder_shape": shape, "native_size": 448})
    native, half = PromptFreeSam(small, 4, 448), PromptFreeSam(small, 4, 224)
    state = {name: tensor for name, tensor in native.state_dict().items() if "output_upscaling" not in name}
    load_base(half, state)
    embeddings = half.state_dict()["image_encoder.pos_embed"]
    assert embeddings.shape == (1, 14, 14, 24)
    constant = {name: torch.ones_like(tensor) if name.endswith("pos_embed") else tensor for name, tensor in state.items()}
    load_base(half, constant)
    torch.testing.assert_close(half.state_dict()["image_encoder.pos_embed"], torch.ones(1, 14, 14, 24))


def test_a_checkpoint_of_another_model_is_refused() -> None:
    model = PromptFreeSam(base_model_spec("tiny_random"), 3, 28)
    state = model.state_dict()
    with pytest.raises(FedsamError, match=r"not one of tiny_random[\s\S]*no tensor image_encoder.neck.0.weight"):
        load_base(model, {name: tensor for name, tensor in state.items() if name != "image_encoder.neck.0.weight"})
    with pytest.raises(FedsamError, match=r"not one of tiny_random[\s\S]*unknown tensors \['surprise'\]"):
        load_base(model, state | {"surprise": torch.zeros(1)})


@pytest.mark.weights
def test_real_weights_at_round_0_give_sams_masks(weights: Path) -> None:
    """With four tokens the head is SAM's own: our logits equal segment_anything's on the same embeddings."""
    spec = base_model_spec("lite_medsam")
    state = read_checkpoint(spec, weights)
    adapted = build("lite_medsam", num_classes=4, image_size=112, weights=weights)
    plain = PromptFreeSam(spec, 4, 112).eval()
    plain.load_state_dict(state, strict=True)  # every tensor, nothing fitted: SAM itself
    images = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(adapted.model.encode(images), plain.encode(images), rtol=1e-4, atol=2e-5)
        embeddings = plain.encode(images)
        torch.testing.assert_close(adapted.model.decode(embeddings), plain.decode(embeddings), rtol=1e-5, atol=1e-5)


@pytest.mark.weights
def test_a_random_encoder_keeps_the_pretrained_decoder(weights: Path) -> None:
    spec = base_model_spec("lite_medsam")
    pretrained, control = (
        build_base(spec, num_classes=3, image_size=56, weights=weights, random_encoder=choice).state_dict() for choice in (False, True)
    )
    seeded = build_base(spec, num_classes=3, image_size=56, weights=None).state_dict()
    for name, tensor in control.items():
        expected = seeded if name.startswith("image_encoder.") else pretrained
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.weights
def test_real_weights_a_box_around_a_bright_structure_beats_filling_the_box(weights: Path) -> None:
    spec = base_model_spec("lite_medsam")
    model = build_base(spec, num_classes=4, image_size=224, weights=weights)
    y, x = np.mgrid[:224, :224]
    disc = ((y - 110) / 40) ** 2 + ((x - 120) / 25) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 0.3, disc.shape)
    image = torch.from_numpy((disc * 2.0 - 0.5 + noise).astype(np.float32))[None, None].expand(1, 3, -1, -1)
    box = torch.tensor([[95.0, 70.0, 145.0, 150.0]])
    with torch.no_grad():
        sparse, dense = model.prompt_encoder(points=None, boxes=box, masks=None)
        logits, _ = model.mask_decoder(
            image_embeddings=model.encode(image),
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    mask = logits[0, 0].numpy() > 0
    filled = (y >= 70) & (y <= 150) & (x >= 95) & (x <= 145)

    def dice(prediction: np.ndarray) -> float:
        return float(2 * (prediction & disc).sum() / (prediction.sum() + disc.sum()))

    assert dice(mask) > dice(filled) + 0.05
    assert dice(mask) > 0.9
