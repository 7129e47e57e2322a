"""Soft Dice plus cross-entropy, with ignored voxels and with sites that annotated only some classes.

Partial labels: where a site did not annotate a class, its background voxels may be of that class. The probability that they are held
against is then the sum over background and the unannotated classes, the marginal loss of Shi et al., "Marginal loss and exclusion loss
for partially supervised multi-organ segmentation", Medical Image Analysis 2021 (arXiv:2007.03868). Their exclusion loss is not used.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fedsam_pipeline.dataset.label_scheme import IGNORE
from fedsam_pipeline.specs.recipe import LossRecipe

SMOOTH = 1.0


def marginal_logits(logits: Tensor, annotated: Tensor) -> Tensor:
    """Logits whose softmax gives the background the summed probability of background and the classes that nobody annotated.

    Args:
        logits: (N, K, H, W).
        annotated: (N, K) boolean, class by class; column 0, the background, does not matter.

    Returns:
        (N, K, H, W) float32: channel 0 is the logarithm of the summed exponentials, classes without annotation are minus infinity.
    """
    nowhere = torch.tensor(-torch.inf, device=logits.device)
    logits = logits.float()
    known = annotated.clone()
    known[:, 0] = False
    known = known[:, :, None, None]
    background = torch.where(known, nowhere, logits).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, torch.where(known, logits, nowhere)[:, 1:]], dim=1)


def soft_dice_loss(logits: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
    """1 - mean soft Dice over the foreground classes, each pooled over the whole batch (Milletari et al., 3DV 2016; pooled as in nnU-Net).

    A class that neither reference nor prediction holds contributes a loss near 0, thanks to the smoothing term.

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W) integers below K; voxels that are ``IGNORE`` do not count.
        classes: (K,) boolean, the classes to average; ``None`` for all. Background is never one of them.
    """
    probabilities = logits.float().softmax(dim=1)
    kept = labels != IGNORE
    numbers = torch.arange(logits.shape[1], device=labels.device)
    one_hot = labels[:, None] == numbers[:, None, None]  # of one byte an entry; ignored voxels are of no class
    if not kept.all():
        probabilities = probabilities * kept[:, None]
    axes = (0, 2, 3)
    overlap = (probabilities * one_hot).sum(axes)
    total = probabilities.sum(axes) + one_hot.sum(axes)
    dice = (2 * overlap + SMOOTH) / (total + SMOOTH)
    return 1 - (dice[1:] if classes is None else dice[1:][classes[1:]]).mean()


def segmentation_loss(logits: Tensor, labels: Tensor, recipe: LossRecipe, annotated: Tensor | None = None) -> Tensor:
    """The recipe's weighted sum, in float32.

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W) integers below K, or ``IGNORE``: no loss there. A batch without any other voxel has a loss of 0.
        recipe: the weights.
        annotated: (N, K) boolean, the classes that the site of each slice annotated, at least one foreground class in the batch; ``None``
            where all were. A label of any other class must not occur.
    """
    classes = None
    if annotated is not None:
        logits, classes = marginal_logits(logits, annotated), annotated.any(dim=0)
    loss = torch.zeros((), device=logits.device)
    if recipe.dice_weight:
        loss = loss + recipe.dice_weight * soft_dice_loss(logits, labels, classes)
    if recipe.cross_entropy_weight:
        loss = loss + recipe.cross_entropy_weight * _cross_entropy(logits.float(), labels)
    return loss


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the voxels that are not ignored; 0 where there is none."""
    kept = labels != IGNORE
    if kept.all():
        return functional.cross_entropy(logits, labels)
    total = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / kept.sum().clamp(min=1)
