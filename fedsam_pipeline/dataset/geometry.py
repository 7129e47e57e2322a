"""Where a voxel grid lies in the patient, as a value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

sitk: Any = SimpleITK  # it ships without types
CANONICAL_ORIENTATION = "LPS"
"""array index x grows to the patient's left, y to posterior, z to superior"""

_AXIS_OF_LETTER = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}


@dataclass(frozen=True)
class Geometry:
    """The grid of one 3D image.

    ``size`` and ``spacing`` are ordered like arrays, (z, y, x); ``origin`` and ``direction`` follow SimpleITK, (x, y, z) in the patient's
    LPS frame, so that the centre of voxel (x, y, z) lies at ``origin + direction @ (spacing_xyz * (x, y, z))``.

    Args:
        size: voxels, (z, y, x).
        spacing: mm, (z, y, x).
        origin: mm, (x, y, z): centre of the first voxel.
        direction: 9 numbers, row-major 3x3; column i is the unit vector along which index i of (x, y, z) grows.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    def __post_init__(self) -> None:
        if not (len(self.size) == len(self.spacing) == len(self.origin) == 3 and len(self.direction) == 9):
            raise ValueError(f"not the geometry of a 3D grid: {self.size}, {self.spacing}, {self.origin}, {self.direction}")

    @property
    def orientation(self) -> str:
        """DICOM code of the patient axes nearest to the image axes (x, y, z), such as ``"LPS"``."""
        return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.direction))

    def is_orthonormal(self, tolerance: float = 1e-3) -> bool:
        """Whether the axes are at right angles and of unit length, within ``tolerance`` of each matrix entry."""
        matrix = self._matrix()
        return bool(np.all(np.isfinite(matrix)) and np.abs(matrix.T @ matrix - np.eye(3)).max() <= tolerance)

    def corners(self) -> NDArray[np.float64]:
        """The eight outer corners of the grid (half a voxel beyond the outermost centres), (8, 3), physical mm (x, y, z)."""
        z, y, x = self.size
        ends = np.array([[i, j, k] for i in (-0.5, x - 0.5) for j in (-0.5, y - 0.5) for k in (-0.5, z - 0.5)])
        corners: NDArray[np.float64] = np.asarray(self.origin) + (ends * np.asarray(self.spacing[::-1])) @ self._matrix().T
        return corners

    def corner_distance(self, other: "Geometry") -> float:
        """The largest distance between corresponding corners, mm."""
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def same_grid(self, other: "Geometry", tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same size and every corner of one lies within ``tolerance_mm`` of the other's."""
        return self.size == other.size and self.corner_distance(other) <= tolerance_mm

    def canonical(self) -> "Geometry":
        """The same grid with its axes permuted and flipped to the nearest ``LPS`` order."""
        order, flips = self.canonical_axes()
        matrix = self._matrix()
        size, spacing = self.size[::-1], self.spacing[::-1]
        origin = np.asarray(self.origin, dtype=np.float64)
        columns = []
        for axis, flip in zip(order, flips, strict=True):
            column = matrix[:, axis]
            if flip:
                origin = origin + column * spacing[axis] * (size[axis] - 1)
                column = -column
            columns.append(column)
        return Geometry(
            size=(size[order[2]], size[order[1]], size[order[0]]),
            spacing=(spacing[order[2]], spacing[order[1]], spacing[order[0]]),
            origin=(float(origin[0]), float(origin[1]), float(origin[2])),
            direction=tuple(float(value) + 0.0 for value in np.stack(columns, axis=1).ravel()),  # "+ 0.0": no -0.0
        )

    def canonical_axes(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """For each canonical axis (x, y, z): which image axis (x, y, z) becomes it, and whether that one is flipped."""
        code = self.orientation
        order = [0, 0, 0]
        flips = [False, False, False]
        for axis, letter in enumerate(code):
            target = _AXIS_OF_LETTER[letter]
            order[target] = axis
            flips[target] = letter != CANONICAL_ORIENTATION[target]
        return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "size": list(self.size),
            "spacing": list(self.spacing),
            "origin": list(self.origin),
            "direction": list(self.direction),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Geometry":
        """The inverse of ``to_dict``; ``ValueError`` or ``KeyError`` for anything else."""
        size = tuple(int(number) for number in value["size"])
        spacing = tuple(float(number) for number in value["spacing"])
        origin = tuple(float(number) for number in value["origin"])
        if not len(size) == len(spacing) == len(origin) == 3:
            raise ValueError(f"not the geometry of a 3D grid: {dict(value)}")
        return cls(
            (size[0], size[1], size[2]),
            (spacing[0], spacing[1], spacing[2]),
            (origin[0], origin[1], origin[2]),
            tuple(float(number) for number in value["direction"]),
        )

    def _matrix(self) -> NDArray[np.float64]:
        return np.asarray(self.direction, dtype=np.float64).reshape(3, 3)


def numbers_text(values: Iterable[float]) -> str:
    """Numbers for messages: ``(1, 0.5, 3)``."""
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
