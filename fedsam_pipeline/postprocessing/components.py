"""Components and holes of a binary mask.

A component is what touches by a face, an edge or a corner (26 neighbours in 3D), as in the fingerprint and in the lesion metrics. The
background is then connected by faces only (6 neighbours), else diagonal neighbours would both touch and be parted (Rosenfeld,
"Connectivity in digital pictures", J. ACM 1970): a hole is background without a way by faces to the edge of the volume.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label

Mask = NDArray[np.bool_]


def outside_largest(mask: Mask) -> Mask:
    """Voxels of all components but the largest; of equally large ones the first in the array's order stays. (Z, Y, X), or any axes."""
    numbers, sizes = _components(mask)
    if len(sizes) <= 1:
        return np.zeros_like(mask)
    return np.asarray(mask & (numbers != 1 + int(sizes.argmax())))


def in_small_components(mask: Mask, min_voxels: float) -> Mask:
    """Voxels of the components that have fewer than ``min_voxels`` voxels. (Z, Y, X), or any axes."""
    numbers, sizes = _components(mask)
    small = np.concatenate([[False], sizes < min_voxels])
    return np.asarray(small[numbers])


def enclosed(mask: Mask) -> Mask:
    """Voxels outside the mask that it encloses. (Z, Y, X), or any axes; what touches the edge of the array is not enclosed."""
    around = np.pad(~mask, 1, constant_values=True)
    numbers, _ = label(around)  # SciPy's default: by faces
    outside = numbers == numbers.flat[0]
    return np.asarray(~mask & ~outside[(slice(1, -1),) * mask.ndim])


def bounding_box(mask: Mask) -> tuple[slice, ...] | None:
    """The smallest box that holds the mask; ``None`` of an empty one."""
    box = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(found):
            return None
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def _components(mask: Mask) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Their numbers, from 1 on, and their sizes in voxels."""
    numbers, count = label(mask, generate_binary_structure(mask.ndim, mask.ndim))
    return numbers, np.bincount(numbers.ravel(), minlength=count + 1)[1:]
