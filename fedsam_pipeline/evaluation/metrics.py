"""Overlap of two label volumes, class by class: counts first, scores from counts.

Scores are functions of the counts alone, so that what is stored (TP, FP, FN) can always be scored again.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RULE = (
    "Dice: mean over cases, then classes, then unweighted over sites; absent in both = NaN, excluded and counted; "
    "false positives on an empty reference = 0"
)
"""nnU-Net's rule for absent classes; printed with every table and stored with every summary"""


def counts(
    reference: NDArray[np.integer],
    prediction: NDArray[np.integer],
    num_classes: int,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    ignore: int | None = None,
) -> NDArray[np.int64]:
    """Counts voxels of every foreground class, or of groups of classes.

    Args:
        reference: label values in ``0 .. num_classes - 1``, any shape.
        prediction: the same shape.
        num_classes: classes, background included.
        groups: the foreground values that are counted as one each, such as the regions of a dataset; ``None``: every class by itself.
        ignore: voxels of the reference with this value are left out.

    Returns:
        (K - 1, 3), columns TP, FP, FN; row ``k - 1`` is class ``k``. With ``groups``, (G, 3) in their order.

    Raises:
        ValueError: different shapes, or values outside the classes.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"different shapes: {reference.shape} and {prediction.shape}")
    if ignore is not None:
        kept = reference != ignore
        reference, prediction = reference[kept], prediction[kept]
    for name, labels in (("reference", reference), ("prediction", prediction)):
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(f"{name}: values {int(labels.min())} to {int(labels.max())}, expected 0 to {num_classes - 1}")
    pairs = reference.ravel().astype(np.int64) * num_classes + prediction.ravel()
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    members = np.zeros((num_classes - 1 if groups is None else len(groups), num_classes), dtype=np.int64)
    for row, values in enumerate([[value] for value in range(1, num_classes)] if groups is None else groups):
        members[row, list(values)] = 1
    true_positives = np.einsum("gi,ij,gj->g", members, confusion, members)
    false_positives = members @ confusion.sum(axis=0) - true_positives
    false_negatives = members @ confusion.sum(axis=1) - true_positives
    return np.stack([true_positives, false_positives, false_negatives], axis=1).astype(np.int64)


def dice_from_counts(table: NDArray[np.integer]) -> NDArray[np.float64]:
    """Dice ``2 TP / (2 TP + FP + FN)`` of counts (..., 3) -> (...); NaN where a class is absent in both masks."""
    true_positives, errors = table[..., 0], table[..., 1] + table[..., 2]
    return _ratio(2 * true_positives, 2 * true_positives + errors)


def iou_from_counts(table: NDArray[np.integer]) -> NDArray[np.float64]:
    """Intersection over union ``TP / (TP + FP + FN)`` of counts (..., 3) -> (...); NaN where a class is absent in both masks."""
    return _ratio(table[..., 0], table.sum(axis=-1))


def _ratio(numerator: NDArray[np.integer], denominator: NDArray[np.integer]) -> NDArray[np.float64]:
    result = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
