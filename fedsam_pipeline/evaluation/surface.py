"""Distance between the surfaces of two masks, in mm.

HD95 is not one metric: Maier-Hein et al. (Metrics Reloaded, Nature Methods 2024) and Reinke et al. (Nature Methods 2024) ask that papers
say which they mean. Here, as in MedPy (Maier, ``medpy.metric.binary.hd95``), a surface is the foreground voxels with a face neighbour
outside, their centres are points, and HD95 is the 95th percentile (linear between ranks) of both directed sets of nearest distances
pooled. Other tools take the larger of the two directed percentiles; figures of the two definitions cannot be compared.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, generate_binary_structure
from scipy.spatial import cKDTree

PERCENTILE = 95
RULE = (
    "HD95: 95th percentile of both directed surface distances pooled (MedPy), mm; mean over cases, then classes, then unweighted over "
    "sites; absent in both = NaN, excluded; absent in one = no distance, excluded and counted as missing"
)
"""printed with every table that shows HD95"""


def hd95(reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """The 95th percentile Hausdorff distance of two masks, symmetric.

    Only the bounding box of their union is looked at: outside it both are background, and what lies outside the array counts as background
    too, so a mask that touches the border has a surface there.

    Args:
        reference: (Z, Y, X), or any number of axes.
        prediction: the same shape.
        spacing: mm, ordered like the axes.

    Returns:
        mm; NaN where one of the masks is empty or both are: there is no distance to nothing.

    Raises:
        ValueError: different shapes, or a spacing for another number of axes.
    """
    if reference.shape != prediction.shape or len(spacing) != reference.ndim:
        raise ValueError(f"shapes {reference.shape} and {prediction.shape} with spacing {tuple(spacing)}")
    if not reference.any() or not prediction.any():
        return float("nan")
    box = _bounding_box(reference | prediction)
    one, other = _surface(reference[box], spacing), _surface(prediction[box], spacing)
    distances = np.concatenate([cKDTree(other).query(one)[0], cKDTree(one).query(other)[0]])
    return float(np.percentile(distances, PERCENTILE))


def hd95_of_labels(
    reference: NDArray[np.integer],
    prediction: NDArray[np.integer],
    groups: Sequence[Sequence[int]],
    spacing: Sequence[float],
    *,
    ignore: int | None = None,
) -> NDArray[np.float64]:
    """HD95 of several classes, or of groups of them.

    Args:
        reference: label values (Z, Y, X).
        prediction: the same shape.
        groups: the values that make up each mask.
        spacing: mm, ordered like the axes.
        ignore: voxels of the reference with this value are background in both masks.

    Returns:
        (G,) in the order of ``groups``; NaN where a mask is empty.
    """
    if ignore is not None:
        prediction = np.where(reference == ignore, 0, prediction)
    return np.array([hd95(_members(reference, values), _members(prediction, values), spacing) for values in groups])


def _members(labels: NDArray[np.integer], values: Sequence[int]) -> NDArray[np.bool_]:
    return np.asarray(labels == values[0]) if len(values) == 1 else np.isin(labels, list(values))


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _surface(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """(N, axes) centres of the surface voxels, mm."""
    inner = binary_erosion(mask, generate_binary_structure(mask.ndim, 1))
    return np.asarray(np.argwhere(mask & ~inner) * np.asarray(spacing, dtype=np.float64))
