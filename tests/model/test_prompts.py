"""Prompts of a batch: SAM's tokens and SAM's decoder, image by image; images without prompts as if nobody had prompted."""

import pytest
import torch

from fedsam_pipeline.model.build import AdaptedModel, build_adapted
from fedsam_pipeline.model.positions import ExactPositions
from fedsam_pipeline.model.prompts import ImagePrompt, Prompts, prompt_tokens
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.sam_modules import PositionEmbeddingRandom
from fedsam_pipeline.specs.recipe import load_recipe

BOX = ImagePrompt("box", 1, (2.0, 3.0, 20.0, 11.0))
POINT = ImagePrompt("point", 2, (9.0, 14.0, 9.0, 14.0))
NEGATIVE = ImagePrompt("negative_point", 2, (9.0, 14.0, 9.0, 14.0))


def build(*, prompted: bool = True) -> AdaptedModel:
    return build_adapted("tiny_random", load_recipe("flap_sam"), rank=2, num_classes=3, image_size=28, weights=None, prompted=prompted)


@pytest.fixture(scope="module")
def model() -> PromptFreeSam:
    return build().model


def by_sam(model: PromptFreeSam, embedding: torch.Tensor, prompt: ImagePrompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and logits of one image and one prompt, by SAM's own code."""
    x0, y0, x1, y1 = prompt.box
    points = None if prompt.kind == "box" else (torch.tensor([[[x0, y0]]]), torch.full((1, 1), float(prompt.kind == "point")))
    boxes = torch.tensor([[x0, y0, x1, y1]]) if prompt.kind == "box" else None
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=None)
    place = model.prompt_encoder.get_dense_pe()
    logits, _ = model.mask_decoder.predict_masks(embedding[None], place, sparse, dense)
    return sparse, logits


def test_tokens_and_logits_are_sams(model: PromptFreeSam) -> None:
    embeddings = torch.randn(4, 32, 7, 7, generator=torch.Generator().manual_seed(0))
    single = (BOX, POINT, BOX._replace(box=(0.0, 0.0, 27.0, 27.0)), NEGATIVE)
    prompts = Prompts.of([[prompt] for prompt in single])
    assert prompts is not None
    assert model.prompt_classes is not None
    with torch.no_grad():
        tokens = prompt_tokens(model.prompt_encoder, prompts, model.prompt_classes)
        logits = model.decode(embeddings, prompts)
        for row, prompt in enumerate(single):
            expected_tokens, expected = by_sam(model, embeddings[row], prompt)
            torch.testing.assert_close(tokens[row : row + 1], expected_tokens, rtol=0, atol=1e-5)
            torch.testing.assert_close(logits[row : row + 1], expected, rtol=1e-5, atol=1e-5)


def test_positions_are_sams_also_where_autocast_would_round_them() -> None:
    plain = PositionEmbeddingRandom(16)
    places = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) * 1024
    both = (plain, ExactPositions.of(plain))
    expected = [plain((64, 48)), plain.forward_with_coords(places, (1024, 1024))]
    with torch.autocast("cpu", torch.bfloat16):
        rounded, found = ([positions((64, 48)), positions.forward_with_coords(places, (1024, 1024))] for positions in both)
    for what, value, coarse in zip(expected, found, rounded, strict=True):
        torch.testing.assert_close(value, what, rtol=0, atol=1e-5)
        assert (coarse.float() - what).abs().max() > 1e-2


def test_the_model_encodes_positions_in_full_precision() -> None:
    model = build().model
    with torch.autocast("cpu", torch.bfloat16):
        assert model.prompt_encoder.get_dense_pe().dtype == torch.float32
    assert "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in model.state_dict()


def test_images_without_prompts_are_decoded_prompt_free(model: PromptFreeSam) -> None:
    embeddings = torch.randn(4, 32, 7, 7, generator=torch.Generator().manual_seed(1))
    some = Prompts.of([[], [BOX, POINT], [], [POINT]])
    with torch.no_grad():
        free, asked = model.decode(embeddings), model.decode(embeddings, some)
    torch.testing.assert_close(asked[[0, 2]], free[[0, 2]], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(asked[[1, 3]], free[[1, 3]], atol=1e-3)
    assert Prompts.of([[], []]) is None


def test_a_missing_prompt_beside_another_says_nothing_of_a_class(model: PromptFreeSam) -> None:
    """Padding is SAM's "not a point", whatever class the other images ask for."""
    prompts = Prompts.of([[BOX], [BOX, POINT]])
    assert prompts is not None
    assert model.prompt_classes is not None
    tokens = prompt_tokens(model.prompt_encoder, prompts, model.prompt_classes)
    nothing = model.prompt_encoder.not_a_point_embed.weight.expand(2, -1)
    torch.testing.assert_close(tokens[0, 2:], nothing)


def test_the_class_of_a_prompt_is_learned() -> None:
    adapted = build()
    names = set(adapted.manifest.trained_names)
    assert "prompt_classes.weight" in names
    assert {entry.name for entry in adapted.manifest.federated} == names
    assert "prompt_classes.weight" not in build(prompted=False).manifest.trained_names
    images = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        before = [adapted.model(images, Prompts.of([[BOX._replace(label=label)]])) for label in (1, 2)]
        torch.testing.assert_close(before[0], before[1], rtol=0, atol=0)
        adapted.model.prompt_classes.weight.copy_(torch.randn(3, 32))  # type: ignore[union-attr]
        after = [adapted.model(images, Prompts.of([[BOX._replace(label=label)]])) for label in (1, 2)]
    assert not torch.allclose(after[0], after[1], atol=1e-3)


def test_a_model_without_prompts_refuses_them() -> None:
    with pytest.raises(ValueError, match="planned without prompts"):
        build(prompted=False).model(torch.randn(1, 3, 28, 28), Prompts.of([[BOX]]))
