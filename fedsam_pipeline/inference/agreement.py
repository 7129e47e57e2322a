"""How far the members of an ensemble, or mirrored images, agree on one case: a measure of quality that needs no reference mask.

The measure is the mean Dice of all pairs of members, class by class (Roy et al., "Bayesian QuickNAT: Model uncertainty in deep whole-brain
segmentation for structure-wise quality control", NeuroImage 2019, who found it highly correlated with the Dice against manual masks). It
is on the scale that people know from masks, and one number a class; entropy of voxels, the alternative, is unreliable for single patients
even where it is calibrated over a dataset (Jungo & Reyes, MICCAI 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from fedsam_pipeline.inference.score_map import DTYPE

MAX_CLASSES = 1 << (np.finfo(DTYPE).nmant + 1)
"""folds are compared up to so many classes: their label maps wait in a ``ScoreMap``, which holds larger whole numbers inexactly"""


def winner(scores: torch.Tensor) -> torch.Tensor:
    """(n, K, H, W) to the class of the largest score, (n, H, W) int16; the smaller class where two are equal."""
    best = scores[:, 0].clone()
    labels = torch.zeros(best.shape, dtype=torch.int16)
    for label in range(1, scores.shape[1]):
        labels.masked_fill_(scores[:, label] > best, label)
        torch.maximum(best, scores[:, label], out=best)
    return labels


class Agreement:
    """Overlap of the label maps of several members, pair by pair; its size does not grow with the volume.

    Args:
        num_members: M, at least two.
        num_classes: K, background included.
    """

    def __init__(self, num_members: int, num_classes: int) -> None:
        if num_members < 2:
            raise ValueError(f"{num_members} member(s) have nobody to agree with")
        self._num_classes = num_classes
        self._sizes = np.zeros((num_members, num_classes))
        self._shared = {pair: np.zeros(num_classes) for pair in combinations(range(num_members), 2)}

    def add(self, labels: Sequence[torch.Tensor], weights: NDArray[np.floating] | None = None) -> None:
        """Counts some slices, one after the other.

        Args:
            labels: classes (n, H, W) of each member.
            weights: (n, H, W) of the voxels; ``None``: each counts once.
        """
        for number in range(len(labels[0])):
            here = np.stack([own[number].numpy().ravel() for own in labels])
            found = here.any(axis=0)  # most voxels are background for all
            if found.any():
                share = np.ones(int(found.sum())) if weights is None else weights[number].ravel()[found].astype(np.float64)
                self._count(here[:, found], share)

    def _count(self, labels: NDArray[np.integer], weights: NDArray[np.float64]) -> None:
        """``labels``: (M, F) of F voxels."""
        for member, own in enumerate(labels):
            self._sizes[member] += np.bincount(own, weights, self._num_classes)
        for (a, b), shared in self._shared.items():
            same = labels[a] == labels[b]
            shared += np.bincount(labels[a][same], weights[same], self._num_classes)

    def dice(self) -> tuple[float | None, ...]:
        """Mean Dice of all pairs, for each foreground class. Pairs of which neither has the class are left out; ``None``: all are."""
        result: list[float | None] = []
        for label in range(1, self._num_classes):
            both = [(shared[label], self._sizes[a, label] + self._sizes[b, label]) for (a, b), shared in self._shared.items()]
            scores = [2 * shared / sizes for shared, sizes in both if sizes > 0]
            result.append(min(1.0, float(np.mean(scores))) if scores else None)  # sums of weights are rounded
        return tuple(result)


@dataclass(frozen=True)
class CaseAgreement:
    """What is watched while one case is predicted.

    Attributes:
        folds: between the answers of the folds, at the plan's spacing; ``None`` for a single one.
        mirrors: between the answers to mirrored images, window by window, each voxel with the weights of the windows that it is in; those
            of all folds are counted together. ``None`` without mirroring.
    """

    folds: Agreement | None
    mirrors: Agreement | None

    @classmethod
    def between(cls, num_folds: int, num_mirrorings: int, num_classes: int) -> Self:
        """Watches what there is to compare.

        Args:
            num_folds: of the ensemble.
            num_mirrorings: of each image, the one that is not mirrored included.
            num_classes: background included.
        """
        return cls(
            folds=Agreement(num_folds, num_classes) if num_folds > 1 and num_classes <= MAX_CLASSES else None,
            mirrors=Agreement(num_mirrorings, num_classes) if num_mirrorings > 1 else None,
        )
