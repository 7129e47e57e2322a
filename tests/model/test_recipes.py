"""Every recipe of the package on every kind of encoder: known counts, round 0 is the base model, what trains and what travels."""

import pytest
import torch

from fedsam_pipeline.model.build import AdaptedModel, build_adapted, build_base
from fedsam_pipeline.model.lora import LoRALinear
from fedsam_pipeline.model.registry import BASE_MODELS, base_model_spec
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.specs.recipe import load_recipe, recipe_names
from tests.model.tiny_models import IMAGE_SIZE, SMALL_VIT, TINY_VIT, register_small_vit

BASES = (TINY_VIT, SMALL_VIT)


@pytest.fixture(autouse=True)
def _small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    register_small_vit(monkeypatch)


def build(base: str, recipe: str, *, rank: int = 2) -> AdaptedModel:
    return build_adapted(base, load_recipe(recipe), rank=rank, num_classes=3, image_size=IMAGE_SIZE[base], weights=None)


def shapes(base: str, recipe: str, *, rank: int) -> Manifest:
    """The manifest at 224 px and two foreground classes, without memory for the weights."""
    with torch.device("meta"):
        return build_adapted(base, load_recipe(recipe), rank=rank, num_classes=3, image_size=224, weights=None).manifest


def images(base: str) -> torch.Tensor:
    return torch.randn(2, 3, IMAGE_SIZE[base], IMAGE_SIZE[base], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("recipe", "trained", "federated"),
    [
        ("fedsam", 90_532_927, 90_532_927),
        ("decoder", 3_902_195, 3_902_195),
        ("partial_decoder", 478_320, 478_320),
        ("lora", 1_179_648 + 188_416, 1_368_064),
        ("samed", 5_270_259, 5_270_259),
        ("flap_sam", 1_846_384, 1_846_384),
        ("fedmsa", 24 * (2 * 768 * 192 + 768 + 192) + 3_902_195, 11_003_123),
        ("ffa_lora", 1_846_384 - 704_512, 1_141_872),
        ("fedsa_lora", 1_846_384, 704_512 + 478_320),
        ("iat", 1_846_384, 12 * 2 * 768 * 32 + 14 * 256 * 32 + 478_320),
        ("late_lora", 1_179_648 // 2 + 478_320, 1_068_144),
        ("late_lora_cached", 1_179_648 // 2 + 478_320, 1_068_144),
    ],
)
def test_counts_on_vit_b_at_rank_32(recipe: str, trained: int, federated: int) -> None:
    manifest = shapes("vit_b", recipe, rank=32)
    assert (manifest.trained_parameters, manifest.federated_parameters) == (trained, federated)


@pytest.mark.parametrize("recipe", ["default", "flap_sam", "samed", "decoder", "partial_decoder"])
def test_what_vit_lacks_of_the_output_part_trains(recipe: str) -> None:
    """Of the sixteenfold head everything but the first upscaling is new there, drawn at random: nothing of it may stay so."""
    whole = {entry.name for entry in shapes("vit_b", "fedsam", rank=4).tensors}
    trained = {entry.name for entry in shapes("vit_b", recipe, rank=4).tensors}
    head = {name for name in whole if name.startswith("mask_decoder.output_upscaling.")}
    last = {name for name in whole if name.startswith("mask_decoder.output_hypernetworks_mlps.") and ".layers.2." in name}
    assert last and last <= trained
    assert head - trained <= {"mask_decoder.output_upscaling.0.weight"}


def test_attention_on_vit_b_is_all_nineteen_attentions_and_nothing_else() -> None:
    manifest = shapes("vit_b", "attention", rank=32)
    encoder = 12 * (768 * 4 * 768 + 4 * 768 + 2 * 27 * 64)  # qkv and proj with bias, relative positions of 14 x 14 tokens
    full, halved = 4 * (256 * 256 + 256), 3 * (256 * 128 + 128) + 128 * 256 + 256
    assert manifest.trained_parameters == encoder + 2 * full + 5 * halved
    assert not [name for name in manifest.trained_names if "norm" in name]


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("base", [name for name, spec in BASE_MODELS.items() if spec.weights is not None])
def test_every_recipe_fits_every_base_model(base: str, recipe: str) -> None:
    manifest = shapes(base, recipe, rank=4)
    assert 0 < manifest.federated_parameters <= manifest.trained_parameters


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("base", BASES)
def test_round_0_is_the_base_model(base: str, recipe: str) -> None:
    adapted = build(base, recipe).model
    plain = build_base(base_model_spec(base), num_classes=3, image_size=IMAGE_SIZE[base], weights=None)
    batch = images(base)
    with torch.no_grad():
        torch.testing.assert_close(adapted.encode(batch), plain.encode(batch), rtol=0, atol=1e-6)
        torch.testing.assert_close(adapted(batch), plain(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("base", BASES)
def test_a_step_changes_trained_tensors_only_and_the_masks(base: str, recipe: str) -> None:
    adapted = build(base, recipe)
    model, batch, trained = adapted.model, images(base), set(adapted.manifest.trained_names)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    logits = model(batch)
    target = torch.randint(3, logits.shape[:1] + logits.shape[2:], generator=torch.Generator().manual_seed(1))
    torch.nn.functional.cross_entropy(logits, target).backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and changed <= trained
    with torch.no_grad():
        assert not torch.equal(model(batch), logits)


def kinds(manifest: Manifest, travels: str) -> set[str]:
    return {entry.name.rsplit(".", 1)[-1][:6] for entry in manifest.tensors if entry.travels == travels and ".lora_" in entry.name}


@pytest.mark.parametrize("base", BASES)
def test_what_stays_at_the_site(base: str) -> None:
    local = {recipe: kinds(build(base, recipe).manifest, "none") for recipe in recipe_names()}
    assert {recipe: stays for recipe, stays in local.items() if stays} == {"fedsa_lora": {"lora_B"}, "iat": {"lora_A", "lora_B"}}
    assert kinds(build(base, "fedsa_lora").manifest, "both") == {"lora_A"}
    assert kinds(build(base, "ffa_lora").manifest, "both") == {"lora_B"}
    for entry in build(base, "iat").manifest.tensors:
        if ".lora_" in entry.name:
            shared = ".lora_B_" if entry.name.startswith("image_encoder.") else ".lora_A_"
            assert (entry.travels == "both") == (shared in entry.name)
        else:
            assert entry.travels == "both"


def test_frozen_factors_are_drawn_alike_everywhere() -> None:
    first, second = (dict(build(SMALL_VIT, "ffa_lora").model.named_parameters()) for _ in range(2))
    factors = [name for name in first if ".lora_A_" in name]
    assert factors and all(torch.equal(first[name], second[name]) and first[name].any() for name in factors)


@pytest.mark.parametrize(
    ("base", "prefixes"),
    [
        (SMALL_VIT, ("image_encoder.blocks.2.", "image_encoder.blocks.3.")),
        (TINY_VIT, ("image_encoder.layers.2.", "image_encoder.layers.3.")),
    ],
)
def test_late_lora_is_in_the_last_blocks_of_the_encoder(base: str, prefixes: tuple[str, ...]) -> None:
    model = build(base, "late_lora").model
    places = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert len(places) == 2 and all(place.startswith(prefix) for place, prefix in zip(places, prefixes, strict=True))


def test_late_lora_leaves_the_early_blocks_without_gradient_work() -> None:
    model = build(SMALL_VIT, "late_lora").model
    seen: list[bool] = []
    for block in model.image_encoder.get_submodule("blocks"):  # type: ignore[attr-defined]
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    model(images(SMALL_VIT))
    assert seen == [False, False, True, True]
