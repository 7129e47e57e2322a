"""Averages probabilities that several models left beside their masks."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path
from fedsam_pipeline.inference.probabilities import CUBE, Probabilities, new_array

SAME_GRID_MM = 1e-3


def check_alike(members: Sequence[Probabilities]) -> None:
    """Refuses to average what is not of one image and one set of labels.

    Raises:
        FedsamError: grids or labels differ.
    """
    first = members[0]
    for other in members[1:]:
        if other.labels != first.labels:
            raise FedsamError(
                "probabilities of different labels cannot be averaged",
                path=other.path,
                found=", ".join(other.labels),
                expected=f"{', '.join(first.labels)}, as in {first.path.parent}",
                fix="average models of one dataset",
            )
        if not other.geometry.same_grid(first.geometry, SAME_GRID_MM):
            raise FedsamError(
                "probabilities on different grids cannot be averaged",
                path=other.path,
                found=other.geometry,
                expected=f"{first.geometry}, as in {first.path.parent}",
                fix="predict the same images with all models",
            )


def average(members: Sequence[Probabilities], output: Path | None = None) -> NDArray[np.unsignedinteger]:
    """The mask of the mean probabilities, and where ``output`` is given the mean itself.

    Class by class along the first axis: in memory are the mask and some slices of one class, whatever the numbers of classes and members.

    Args:
        members: of one image, see ``check_alike``.
        output: file of probabilities to write.

    Returns:
        (Z, Y, X), class numbers, uint8 (uint16 for more than 256 classes); a tie goes to the smaller class.

    Raises:
        FedsamError: the members do not fit together, or the folder cannot be written to.
    """
    check_alike(members)
    first = members[0]
    mask = np.zeros(first.geometry.size, dtype=np.uint8 if len(first.labels) <= 256 else np.uint16)
    with nullcontext() if output is None else atomic_path(output) as temporary:
        mean: Any = None if temporary is None else new_array(temporary, first.geometry, first.labels)
        for start in range(0, len(mask), CUBE):
            rows = slice(start, min(start + CUBE, len(mask)))
            best = np.full(mask[rows].shape, -1, dtype=np.float32)
            for label in range(len(first.labels)):
                share = np.zeros_like(best)
                for member in members:
                    share += member.array[label, rows]
                share /= len(members)
                if mean is not None:
                    mean[label, rows] = share.astype(np.float16)
                mask[rows][share > best] = label
                np.maximum(best, share, out=best)
    return mask
