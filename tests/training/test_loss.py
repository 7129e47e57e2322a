"""The loss: its two terms, what partial labels and ignored voxels do to it, and that ordinary masks give what they always gave."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fedsam_pipeline.dataset.label_scheme import IGNORE
from fedsam_pipeline.specs.recipe import LossRecipe
from fedsam_pipeline.training.loss import marginal_logits, segmentation_loss, soft_dice_loss

BOTH = LossRecipe(dice_weight=1.0, cross_entropy_weight=1.0)
DICE = LossRecipe(dice_weight=1.0, cross_entropy_weight=0.0)
ENTROPY = LossRecipe(dice_weight=0.0, cross_entropy_weight=1.0)
ONLY_1 = torch.tensor([[True, True, False, False]]).expand(2, -1)
"""two slices of a site that annotated class 1 of three"""


def random_batch(seed: int = 0, classes: int = 4, labelled: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits (2, K, 6, 5) that want gradients, and labels of which ``labelled`` classes occur."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 6, 5, generator=generator)
    return logits.requires_grad_(), torch.randint(0, labelled or classes, (2, 6, 5), generator=generator)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


def test_dice_loss_is_low_for_a_perfect_and_high_for_an_empty_prediction() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[:, 2:6, 2:6] = 1
    perfect = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2) * 50.0
    empty = torch.zeros(2, 3, 8, 8)
    empty[:, 0] = 50
    assert soft_dice_loss(perfect, labels) < 1e-3
    assert soft_dice_loss(empty, labels) > 0.45  # class 2 is rightly absent, class 1 is missed


def test_the_recipe_weighs_the_loss() -> None:
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    both = segmentation_loss(logits, labels, LossRecipe(dice_weight=2.0, cross_entropy_weight=0.5))
    torch.testing.assert_close(both, 2 * segmentation_loss(logits, labels, DICE) + 0.5 * segmentation_loss(logits, labels, ENTROPY))


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice and cross-entropy of fully annotated masks, written out."""
    probabilities = logits.float().softmax(dim=1)
    one_hot = functional.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2)
    overlap, total = (probabilities * one_hot).sum((0, 2, 3)), probabilities.sum((0, 2, 3)) + one_hot.sum((0, 2, 3))
    dice = 1 - ((2 * overlap + 1) / (total + 1))[1:].mean()
    return torch.zeros(()) + 1.0 * dice + 1.0 * functional.cross_entropy(logits.float(), labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 6))
def test_masks_with_all_classes_and_all_voxels_give_the_plain_loss_to_the_last_bit(dtype: torch.dtype, seed: int, classes: int) -> None:
    logits, labels = random_batch(seed, classes)
    logits = logits.detach().to(dtype).requires_grad_()
    expected, found = plain_loss(logits, labels), segmentation_loss(logits, labels, BOTH)
    assert torch.equal(found, expected)
    assert torch.equal(gradient(found, logits), gradient(expected, logits))


def test_marginal_probabilities_sum_background_and_unannotated_classes() -> None:
    logits, _ = random_batch()
    probabilities, marginal = logits.softmax(dim=1), marginal_logits(logits, ONLY_1).softmax(dim=1)
    torch.testing.assert_close(marginal[:, 0], probabilities[:, [0, 2, 3]].sum(dim=1))
    torch.testing.assert_close(marginal[:, 1], probabilities[:, 1])
    assert not marginal[:, 2:].any()


def test_marginal_cross_entropy_is_the_logarithm_of_the_summed_probability() -> None:
    logits, labels = random_batch(labelled=2)
    probabilities = logits.softmax(dim=1)
    held = torch.where(labels == 1, probabilities[:, 1], 1 - probabilities[:, 1])
    torch.testing.assert_close(segmentation_loss(logits, labels, ENTROPY, ONLY_1), -held.log().mean())


def test_marginal_dice_is_that_of_the_annotated_class() -> None:
    logits, labels = random_batch(labelled=2)
    probabilities, truth = logits.softmax(dim=1)[:, 1], labels == 1
    dice = (2 * (probabilities * truth).sum() + 1) / (probabilities.sum() + truth.sum() + 1)
    torch.testing.assert_close(segmentation_loss(logits, labels, DICE, ONLY_1), 1 - dice)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.01, 0.99))
def test_an_unannotated_class_against_background_changes_nothing(seed: int, share: float) -> None:
    """Probability moved between background and the classes that nobody annotated costs nothing, at any voxel."""
    logits, labels = random_batch(seed, labelled=2)
    moved = logits.detach().clone()
    together = moved[:, [0, 2, 3]].logsumexp(dim=1)
    weights = torch.tensor([share, (1 - share) / 3, 2 * (1 - share) / 3]).log()
    for channel, weight in zip((0, 2, 3), weights, strict=True):
        moved[:, channel] = together + weight
    before = segmentation_loss(logits, labels, BOTH, ONLY_1)
    torch.testing.assert_close(segmentation_loss(moved, labels, BOTH, ONLY_1), before, rtol=1e-4, atol=1e-5)
    assert not torch.isclose(segmentation_loss(moved, labels, BOTH), segmentation_loss(logits, labels, BOTH), rtol=1e-3)
    # along every direction that keeps the sum, the derivative is 0: each logit's gradient is its share of one common gradient
    slope = gradient(before, logits)
    unknown = logits[:, [0, 2, 3]].softmax(dim=1)
    torch.testing.assert_close(slope[:, [0, 2, 3]], unknown * slope[:, [0, 2, 3]].sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-7)
    assert torch.isfinite(slope).all() and slope.any()


def test_all_classes_annotated_is_no_partial_label() -> None:
    logits, labels = random_batch()
    everything = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(segmentation_loss(logits, labels, BOTH, everything), segmentation_loss(logits, labels, BOTH))


def test_slices_of_different_sites_in_one_batch_keep_their_own_classes() -> None:
    """Centralized training pools sites: cross-entropy is the mean of the slices', Dice of a class comes from the slices that have it."""
    logits, labels = random_batch()
    labels[0] = labels[0].clamp(max=1)
    annotated = torch.tensor([[True, True, False, False], [True, True, True, True]])
    alone = [segmentation_loss(logits[i : i + 1], labels[i : i + 1], ENTROPY, annotated[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(segmentation_loss(logits, labels, ENTROPY, annotated), torch.stack(alone).mean())
    probabilities, truth = logits.softmax(dim=1), functional.one_hot(labels, 4).permute(0, 3, 1, 2)
    dice = [
        (2 * (probabilities[which, k] * truth[which, k]).sum() + 1) / (probabilities[which, k].sum() + truth[which, k].sum() + 1)
        for k, which in ((1, [0, 1]), (2, [1]), (3, [1]))
    ]
    torch.testing.assert_close(segmentation_loss(logits, labels, DICE, annotated), 1 - torch.stack(dice).mean())
    nobody = torch.tensor([[True, True, False, False], [True, True, False, True]])
    labels[labels == 2] = 0
    perfect = 60.0 * functional.one_hot(labels, 4).permute(0, 3, 1, 2)
    assert segmentation_loss(perfect, labels, BOTH, nobody) < 1e-4


@pytest.mark.parametrize("annotated", [None, ONLY_1], ids=["all classes", "partial labels"])
def test_ignored_voxels_carry_no_loss(annotated: Tensor | None) -> None:
    logits, labels = random_batch(labelled=2)
    whole = labels[:, :4].clone()
    labels[:, 4:] = IGNORE
    found = segmentation_loss(logits, labels, BOTH, annotated)
    torch.testing.assert_close(found, segmentation_loss(logits[:, :, :4], whole, BOTH, annotated))
    slope = gradient(found, logits)
    assert not slope[:, :, 4:].any()
    assert slope[:, :, :4].any()


@pytest.mark.parametrize("recipe", [BOTH, DICE, ENTROPY])
def test_a_batch_of_ignored_voxels_only_has_no_loss_and_no_gradient(recipe: LossRecipe) -> None:
    logits, labels = random_batch()
    loss = segmentation_loss(logits, torch.full_like(labels, IGNORE), recipe)
    assert loss.item() == 0
    assert not gradient(loss, logits).any()
