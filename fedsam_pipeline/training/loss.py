"""Soft Dice plus cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional

from fedsam_pipeline.specs.recipe import LossRecipe

SMOOTH = 1.0


def soft_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - mean soft Dice over the foreground classes, each pooled over the whole batch (Milletari et al., 3DV 2016; pooled as in nnU-Net).

    A class that neither reference nor prediction holds contributes a loss near 0, thanks to the smoothing term.

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W) integers below K.
    """
    probabilities = logits.float().softmax(dim=1)
    one_hot = functional.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2)
    axes = (0, 2, 3)
    overlap = (probabilities * one_hot).sum(axes)
    total = probabilities.sum(axes) + one_hot.sum(axes)
    dice = (2 * overlap + SMOOTH) / (total + SMOOTH)
    return 1 - dice[1:].mean()


def segmentation_loss(logits: Tensor, labels: Tensor, recipe: LossRecipe) -> Tensor:
    """The recipe's weighted sum, in float32."""
    loss = torch.zeros((), device=logits.device)
    if recipe.dice_weight:
        loss = loss + recipe.dice_weight * soft_dice_loss(logits, labels)
    if recipe.cross_entropy_weight:
        loss = loss + recipe.cross_entropy_weight * functional.cross_entropy(logits.float(), labels)
    return loss
