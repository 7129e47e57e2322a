"""Which lesions were found: connected components of two masks, matched one to one.

Metrics Reloaded (Maier-Hein et al., Nature Methods 2024) asks for three decisions. **What an object is**: a connected component, voxels
that touch by a face, an edge or a corner (26 neighbours in 3D). **When two objects localize each other**: mask IoU at least a threshold,
0.1 by default, as nnDetection (Baumgartner et al., MICCAI 2021, arXiv:2106.00817) takes for 3D objects, whose IoU falls fast with small
shifts. **Which pairs count**: one to one, as many pairs as possible (Hopcroft and Karp, SIAM J. Comput. 1973), so that one large component
over three lesions finds one of them. F1 is ``2 TP / (2 TP + FP + FN)`` over components. Challenges that take any overlap as found report
higher figures.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

DEFAULT_IOU = 0.1


@dataclass(frozen=True)
class LesionCounts:
    """Components of one class in one case: found, predicted without a reference, and missed."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def f1(self) -> float:
        """NaN where neither mask has a component; 0 where only one has."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else float("nan")


def count_lesions(reference: NDArray[np.bool_], prediction: NDArray[np.bool_], iou: float = DEFAULT_IOU) -> LesionCounts:
    """Matches the components of two masks.

    Args:
        reference: (Z, Y, X), or any number of axes.
        prediction: the same shape.
        iou: above 0, at most 1: the smallest intersection over union of two components that are the same lesion.

    Raises:
        ValueError: different shapes, or a threshold outside its range.
    """
    if reference.shape != prediction.shape or not 0 < iou <= 1:
        raise ValueError(f"shapes {reference.shape} and {prediction.shape}, IoU {iou}")
    (ours, expected), (theirs, found) = _components(reference), _components(prediction)
    overlap = reference & prediction
    pairs, shared = np.unique(ours[overlap].astype(np.int64) * (found + 1) + theirs[overlap], return_counts=True)
    rows, columns = pairs // (found + 1), pairs % (found + 1)
    union = np.bincount(ours.ravel())[rows] + np.bincount(theirs.ravel())[columns] - shared
    same = shared >= iou * union
    graph = csr_array((np.ones(int(same.sum())), (rows[same] - 1, columns[same] - 1)), shape=(expected, found))
    matched = int((maximum_bipartite_matching(graph) >= 0).sum()) if same.any() else 0
    return LesionCounts(matched, found - matched, expected - matched)


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer], int]:
    """Their numbers from 1 on, and how many there are."""
    labels, number = label(mask, generate_binary_structure(mask.ndim, mask.ndim))
    return labels, int(number)
