"""Reading and writing 3D images and masks without losing their place in the patient.

Arrays are ordered (z, y, x), as SimpleITK hands them out. Images carry their channels in front, (C, Z, Y, X).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from fedsam_pipeline.dataset.geometry import Geometry, numbers_text
from fedsam_pipeline.dataset.image_files import FILE_ENDINGS, geometry_of, not_finite, read_file, split_file_ending, write_file
from fedsam_pipeline.errors import FedsamError

sitk: Any = SimpleITK  # it ships without types

__all__ = [
    "FILE_ENDINGS",
    "SAME_GRID_MM",
    "Geometry",
    "Volume",
    "describe_difference",
    "from_canonical",
    "part_from_canonical",
    "read_image",
    "read_labels",
    "split_file_ending",
    "to_canonical",
    "write_image",
    "write_labels",
]

SAME_GRID_MM = 0.01
"""files of one case lie on the same grid when no corner differs by more; headers written by different tools differ by about 1e-4 mm"""


@dataclass(frozen=True)
class Volume:
    """An array and the grid it lives on.

    Args:
        array: images (C, Z, Y, X) float32, masks (Z, Y, X) integer.
        geometry: the grid of the last three axes.
    """

    array: NDArray[Any]
    geometry: Geometry

    def __post_init__(self) -> None:
        if tuple(self.array.shape[-3:]) != self.geometry.size:
            raise ValueError(f"array {self.array.shape} does not fit a grid of {self.geometry.size} voxels")


def read_image(paths: Sequence[Path]) -> Volume:
    """Reads one image, one file a channel.

    Args:
        paths: the channels' files, in order.

    Returns:
        (C, Z, Y, X) float32 on the grid of the first channel.

    Raises:
        FedsamError: a file is missing, unreadable, not a scalar 3D image, skewed, holds NaN or infinite voxels, or the channels lie on
            different grids.
    """
    if not paths:
        raise ValueError("an image has at least one channel")
    array: NDArray[np.float32] | None = None
    geometry: Geometry | None = None
    for channel, path in enumerate(paths):
        image = read_file(path)
        here = geometry_of(image)
        if array is None or geometry is None:
            geometry = here
            array = np.empty((len(paths), *geometry.size), dtype=np.float32)
        elif not geometry.same_grid(here, SAME_GRID_MM):
            raise channels_apart(path, here, paths[0], geometry)
        with np.errstate(over="ignore"):  # float64 beyond float32's range becomes infinite and is refused below
            array[channel] = sitk.GetArrayViewFromImage(image)
        bad = array[channel].size - int(np.isfinite(array[channel]).sum())
        if bad:
            raise not_finite(path, bad, array[channel].size)
    assert array is not None and geometry is not None
    return Volume(array, geometry)


def read_labels(path: Path) -> Volume:
    """Reads a mask.

    Returns:
        (Z, Y, X) int16, values as stored.

    Raises:
        FedsamError: missing, unreadable, not a scalar 3D image, skewed, fractional or NaN values, or values beyond int16.
    """
    image = read_file(path)
    return Volume(label_array(image, path), geometry_of(image))


def label_array(image: Any, path: Path) -> NDArray[np.int16]:
    """The class numbers of a mask that was read, (Z, Y, X) int16; raises as ``read_labels`` does for values that are none."""
    array = sitk.GetArrayViewFromImage(image)
    if np.issubdtype(array.dtype, np.floating):
        fractional = array[~(array == np.round(array))]  # NaN differs from itself and is caught too
        if fractional.size:
            raise FedsamError(
                "a mask holds values that are not whole numbers",
                path=path,
                found=f"{fractional.size} voxels, such as {', '.join(f'{v:g}' for v in np.unique(fractional)[:5])}",
                expected="class numbers: 0, 1, 2, ...",
                fix="write the mask without interpolation (nearest neighbour), not as probabilities",
            )
    limits = np.iinfo(np.int16)
    low, high = array.min(), array.max()
    if low < limits.min or high > limits.max:
        raise FedsamError(
            "a mask holds values that no class number can have",
            path=path,
            found=f"values from {low:g} to {high:g}",
            expected=f"class numbers of at most {limits.max}",
            fix="check that this file is a mask and not an image",
        )
    whole: NDArray[np.int16] = array.astype(np.int16)
    return whole


def channels_apart(path: Path, found: Geometry, first: Path, expected: Geometry) -> FedsamError:
    """The error for a channel on another grid than the first one's."""
    return FedsamError(
        "the channels of one image lie on different grids",
        path=path,
        found=describe_difference(found, expected),
        expected=f"the grid of {first.name}, within {SAME_GRID_MM} mm",
        fix="resample the channels onto one grid",
    )


def to_canonical(volume: Volume) -> Volume:
    """The same image with its axes permuted and flipped to the nearest LPS order; no voxel is resampled.

    Equals ``sitk.DICOMOrient(image, "LPS")``.
    """
    order, flips = volume.geometry.canonical_axes()
    lead = volume.array.ndim - 3
    axes = [lead + 2 - axis for axis in order[::-1]]  # array axes are (z, y, x), orders are (x, y, z)
    array = np.transpose(volume.array, [*range(lead), *axes])
    array = np.flip(array, tuple(lead + 2 - target for target in range(3) if flips[target]))
    return Volume(np.ascontiguousarray(array), volume.geometry.canonical())


def from_canonical(array: NDArray[Any], original: Geometry) -> NDArray[Any]:
    """The exact inverse of ``to_canonical`` for an array.

    Args:
        array: (..., Z, Y, X) on the grid ``original.canonical()``.
        original: the grid to go back to.

    Returns:
        (..., Z, Y, X) on the grid ``original``.
    """
    if tuple(array.shape[-3:]) != original.canonical().size:
        raise ValueError(f"array {array.shape} does not fit the canonical grid {original.canonical().size}")
    return part_from_canonical(array, (0, 0, 0), original)[0]


def part_from_canonical(array: NDArray[Any], start: Sequence[int], original: Geometry) -> tuple[NDArray[Any], tuple[slice, slice, slice]]:
    """As ``from_canonical``, for a box of the volume.

    Args:
        array: (..., z, y, x), the voxels from ``start`` on.
        start: (z, y, x) on the grid ``original.canonical()``.
        original: the grid to go back to.

    Returns:
        The voxels in the axes of ``original``, and where they lie on it (z, y, x).
    """
    order, flips = original.canonical_axes()
    lead = array.ndim - 3
    size = original.canonical().size
    places = []
    for axis in range(3):  # of (z, y, x); orders and flips are of (x, y, z)
        first, last = start[axis], start[axis] + array.shape[lead + axis]
        places.append(slice(size[axis] - last, size[axis] - first) if flips[2 - axis] else slice(first, last))
    straight = np.flip(array, tuple(lead + 2 - target for target in range(3) if flips[target]))
    z, y, x = (2 - order.index(axis) for axis in (2, 1, 0))
    turned = np.transpose(straight, [*range(lead), lead + z, lead + y, lead + x])
    return np.ascontiguousarray(turned), (places[z], places[y], places[x])


def write_image(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Writes a scalar image (Z, Y, X) of any numeric type, compressed where the format allows, atomically.

    Raises:
        FedsamError: the ending is unknown, or the folder cannot be written to.
    """
    write_file(path, array, geometry)


def write_labels(
    path: Path, array: NDArray[Any], geometry: Geometry, like: Path | None = None, class_names: Mapping[str, int] | None = None
) -> None:
    """Writes a mask (Z, Y, X) as uint8, or uint16 where a class number needs it; compressed and atomic.

    Args:
        path: the file; its ending chooses the format.
        array: class numbers, none negative.
        geometry: the grid.
        like: the image that the mask belongs to. When both are NIfTI-1, its placement bytes (pixdim, units, qform, sform) are copied
            verbatim.
        class_names: name to value, for the header of NRRD.

    Raises:
        FedsamError: the ending is unknown, or the folder cannot be written to.
    """
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.uint16).max):
        raise ValueError(f"class numbers from {array.min()} to {array.max()} do not fit uint16")
    small = array.size == 0 or array.max() <= np.iinfo(np.uint8).max
    write_file(path, array.astype(np.uint8 if small else np.uint16), geometry, like, class_names)


def describe_difference(found: Geometry, expected: Geometry) -> str:
    """In words, how two grids differ."""
    if found.size != expected.size:
        return f"{found.size} voxels (z, y, x) against {expected.size}"
    parts = []
    for name in ("spacing", "origin", "direction"):
        here, there = getattr(found, name), getattr(expected, name)
        if not np.allclose(here, there, rtol=1e-6, atol=1e-4):
            away = "" if name == "direction" else f", {np.linalg.norm(np.subtract(here, there)):.4g} mm off"
            parts.append(f"{name} {numbers_text(here)} against {numbers_text(there)}{away}")
    return f"corners up to {found.corner_distance(expected):.4g} mm apart ({'; '.join(parts) or 'small differences everywhere'})"
