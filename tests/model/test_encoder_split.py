"""The encoder in two parts: together they are the encoder, and the first never changes."""

import pytest
import torch

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.build import AdaptedModel, build_adapted
from fedsam_pipeline.model.encoder_split import EncoderSplit, encoder_steps, frozen_steps
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from tests.model.tiny_models import IMAGE_SIZE, SMALL_VIT, TINY_VIT, register_small_vit

BASES = (TINY_VIT, SMALL_VIT)


@pytest.fixture(autouse=True)
def _small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    register_small_vit(monkeypatch)


def build(base: str, recipe: Recipe) -> AdaptedModel:
    return build_adapted(base, recipe, rank=2, num_classes=3, image_size=IMAGE_SIZE[base], weights=None)


def split_of(adapted: AdaptedModel) -> EncoderSplit:
    return EncoderSplit(adapted.model, adapted.manifest.trained_names)


def images(base: str) -> torch.Tensor:
    return torch.randn(2, 3, IMAGE_SIZE[base], IMAGE_SIZE[base], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("base", BASES)
def test_every_tensor_of_the_encoder_belongs_to_one_step(base: str) -> None:
    encoder = build(base, load_recipe("fedmsa")).model.image_encoder
    steps = encoder_steps(encoder)
    for name, _ in (*encoder.named_parameters(), *encoder.named_buffers()):
        assert sum(step.owns(name) for step in steps) == 1, name


@pytest.mark.parametrize(
    ("base", "recipe", "frozen"),
    [
        (SMALL_VIT, "late_lora", 3),  # the embedding and the first two of four blocks
        (SMALL_VIT, "flap_sam", 1),
        (SMALL_VIT, "decoder", 6),  # the neck too: everything
        (SMALL_VIT, "fedsam", 0),
        (TINY_VIT, "late_lora", 5),  # embedding, two blocks with their mergings; LoRA is in the last two of three attentions
        (TINY_VIT, "partial_decoder", 9),
        (TINY_VIT, "default", 0),
    ],
)
def test_the_cut_is_before_the_first_step_that_trains(base: str, recipe: str, frozen: int) -> None:
    adapted = build(base, load_recipe(recipe))
    assert frozen_steps(adapted.model.image_encoder, adapted.manifest.trained_names) == frozen


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["late_lora", "decoder", "partial_decoder", "flap_sam"])
@pytest.mark.parametrize("base", BASES)
def test_both_parts_are_the_encoder_with_its_gradients(base: str, recipe: str, dtype: torch.dtype | None) -> None:
    adapted = build(base, load_recipe(recipe))
    split, batch, trained = split_of(adapted), images(base), [p for p in adapted.model.parameters() if p.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
    found = []
    for cut in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            embeddings = split.after(split.before(batch)) if cut else adapted.model.encode(batch)
            logits = adapted.model.decode(embeddings)
        gradients = torch.autograd.grad(logits.float().square().mean(), trained, allow_unused=True)
        found.append((embeddings, logits, *(gradient for gradient in gradients if gradient is not None)))
    assert len(found[0]) > 4
    assert all(torch.equal(whole, parts) and whole.dtype == parts.dtype for whole, parts in zip(*found, strict=True))


def test_the_first_part_takes_no_part_in_the_backward_pass() -> None:
    adapted = build(TINY_VIT, load_recipe("late_lora"))
    split = split_of(adapted)
    features = split.before(images(TINY_VIT))
    assert not features.requires_grad and split.after(features).requires_grad


def test_the_hash_is_of_the_frozen_weights_alone() -> None:
    adapted = build(SMALL_VIT, load_recipe("late_lora"))
    split = split_of(adapted)
    before = split.sha256()
    assert split_of(build(SMALL_VIT, load_recipe("late_lora"))).sha256() == before
    parameters = dict(adapted.model.named_parameters())
    for name in ("image_encoder.blocks.2.attn.qkv.weight", "image_encoder.neck.0.weight", "mask_decoder.mask_tokens.weight"):
        parameters[name].data.add_(1)
    assert split.sha256() == before
    parameters["image_encoder.blocks.1.attn.qkv.bias"].data[0] += 1e-6
    assert split.sha256() != before


def test_a_recipe_that_trains_the_first_step_cannot_keep_anything() -> None:
    adapted = build(TINY_VIT, load_recipe("fedsam"))
    with pytest.raises(ValueError, match="from its first step on"):
        split_of(adapted)
    cached = Recipe.from_dict(load_recipe("fedsam").to_dict() | {"cache": {"slabs_per_case": 2}})
    with pytest.raises(FedsamError, match="cache: the encoder trains from its first step on"):
        build(TINY_VIT, cached)
