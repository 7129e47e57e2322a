"""Distance between the surfaces of two masks, in mm: HD95 and ASSD.

Neither is one metric: Maier-Hein et al. (Metrics Reloaded, Nature Methods 2024) and Reinke et al. (Nature Methods 2024) ask that papers
say which they mean. Here, as in MedPy (Maier, ``medpy.metric.binary``), a surface is the foreground voxels with a face neighbour outside,
and their centres are points. Of every point of either surface the distance to the nearest point of the other is taken, and
- **HD95** is the 95th percentile (linear between ranks) of both directed sets pooled. Other tools take the larger of the two directed
  percentiles; figures of the two definitions cannot be compared.
- **ASSD**, average symmetric surface distance, is the mean of both sets pooled. The mean of the two directed means is another metric
  (MASD).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree

from fedsam_pipeline.cores import usable_cores

PERCENTILE = 95
RULE = (
    "HD95: 95th percentile of both directed surface distances pooled (MedPy), mm; mean over cases, then classes, then unweighted over "
    "sites; absent in both = NaN, excluded; absent in one = no distance, excluded and counted as missing"
)
"""printed with every table that shows HD95"""

Mask = NDArray[np.bool_]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces that both exist.

    Attributes:
        from_reference: (N,) mm from every point of the reference's surface to the nearest of the prediction's.
        from_prediction: (M,) the other way round.
    """

    from_reference: NDArray[np.float64]
    from_prediction: NDArray[np.float64]

    @property
    def pooled(self) -> NDArray[np.float64]:
        """(N + M,) both sets."""
        return np.concatenate([self.from_reference, self.from_prediction])

    def hd95(self) -> float:
        """mm."""
        return float(np.percentile(self.pooled, PERCENTILE))

    def assd(self) -> float:
        """mm."""
        return float(self.pooled.mean())


def surface_distances(reference: Mask, prediction: Mask, spacing: Sequence[float]) -> SurfaceDistances | None:
    """The distances of both directions.

    Only the bounding box of their union is looked at: outside it both are background, and what lies outside the array counts as background
    too, so a mask that touches the border has a surface there. Points that both surfaces share are 0 apart and are not searched for.

    Args:
        reference: (Z, Y, X), or any number of axes.
        prediction: the same shape.
        spacing: mm, ordered like the axes.

    Returns:
        ``None`` where one of the masks is empty or both are: there is no distance to nothing.

    Raises:
        ValueError: different shapes, or a spacing for another number of axes.
    """
    if reference.shape != prediction.shape or len(spacing) != reference.ndim:
        raise ValueError(f"shapes {reference.shape} and {prediction.shape} with spacing {tuple(spacing)}")
    if not reference.any() or not prediction.any():
        return None
    box = bounding_box(reference | prediction)
    one, other = _surface(reference[box]), _surface(prediction[box])
    points, targets = _points(one, spacing), _points(other, spacing)
    return SurfaceDistances(nearest(points, targets, other[one]), nearest(targets, points, one[other]))


def hd95(reference: Mask, prediction: Mask, spacing: Sequence[float]) -> float:
    """The 95th percentile Hausdorff distance of two masks, symmetric; arguments and errors as of :func:`surface_distances`.

    Returns:
        mm; NaN where one of the masks is empty or both are.
    """
    distances = surface_distances(reference, prediction, spacing)
    return float("nan") if distances is None else distances.hd95()


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
        reference, prediction, groups, ignore: as in :func:`mask_pairs`.
        spacing: mm, ordered like the axes.

    Returns:
        (G,) in the order of ``groups``; NaN where a mask is empty.
    """
    return np.array([hd95(one, other, spacing) for one, other in mask_pairs(reference, prediction, groups, ignore=ignore)])


def mask_pairs(
    reference: NDArray[np.integer], prediction: NDArray[np.integer], groups: Sequence[Sequence[int]], *, ignore: int | None = None
) -> Iterator[tuple[Mask, Mask]]:
    """The masks of several classes, or of groups of them, each pair cut to a box that holds both.

    Args:
        reference: label values (Z, Y, X).
        prediction: the same shape.
        groups: the values that make up each mask.
        ignore: voxels of the reference with this value are background in both masks.

    Yields:
        In the order of ``groups``: reference and prediction, of one shape. Where both are empty the shape is anything.

    Raises:
        ValueError: different shapes.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"different shapes: {reference.shape} and {prediction.shape}")
    if ignore is not None:
        prediction = np.where(reference == ignore, prediction.dtype.type(0), prediction)
    largest = max(value for values in groups for value in values)
    boxes = [find_objects(labels, largest) for labels in (reference, prediction)]
    for values in groups:
        box = _union([of_value for found in boxes for value in values if (of_value := found[value - 1]) is not None], reference.ndim)
        yield _members(reference[box], values), _members(prediction[box], values)


def _members(labels: NDArray[np.integer], values: Sequence[int]) -> Mask:
    return np.asarray(labels == values[0]) if len(values) == 1 else np.isin(labels, list(values))


def _union(boxes: Sequence[Box], axes: int) -> Box:
    if not boxes:
        return (slice(0, 1),) * axes
    return tuple(slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(axes))


def bounding_box(mask: Mask) -> Box:
    """The smallest box that holds the mask, which has foreground."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _surface(mask: Mask) -> Mask:
    """Foreground voxels with a face neighbour outside; what lies outside the array is outside."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        after, before = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        after[1:] &= before[:-1]
        after[:-1] &= before[1:]
        after[[0, -1]] = False
    return mask & ~inner


def _points(surface: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """(N, axes) centres of the voxels, mm, in the order of the array."""
    return np.asarray(np.argwhere(surface) * np.asarray(spacing, dtype=np.float64))


def nearest(points: NDArray[np.float64], targets: NDArray[np.float64], shared: Mask, reach: float = float("inf")) -> NDArray[np.float64]:
    """Distances from points to the nearest of others.

    Args:
        points: (N, axes).
        targets: (M, axes).
        shared: (N,) which of ``points`` are among the targets: their distance is 0, they are not searched for.
        reach: distances from here on may be infinite instead, which is faster.

    Returns:
        (N,).
    """
    distances = np.zeros(len(points))
    apart = ~shared
    if apart.any():
        tree = cKDTree(targets, balanced_tree=False)
        distances[apart] = tree.query(points[apart], distance_upper_bound=reach, workers=usable_cores())[0]
    return distances
