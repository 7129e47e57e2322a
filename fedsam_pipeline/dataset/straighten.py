"""Axes that are nearly at right angles, put at right angles: the header changes, no voxel does."""

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from fedsam_pipeline.dataset import nifti_header
from fedsam_pipeline.dataset.geometry import Geometry

sitk: Any = SimpleITK  # it ships without types
SMALL_SKEW = 0.02
"""largest dot product of two unit axes that is put straight without resampling: about 1.1 degrees. More is a tilted gantry, or a mistake"""


def straightened(geometry: Geometry) -> Geometry | None:
    """The straight grid nearest to a skewed one, or ``None`` where they differ by more than ``SMALL_SKEW``.

    The axes become the nearest orthonormal matrix, the polar factor of theirs (Higham, SIAM J. Sci. Stat. Comput. 1986); voxel sizes and
    the volume's centre stay.
    """
    matrix = np.asarray(geometry.direction, dtype=np.float64).reshape(3, 3)
    if not np.all(np.isfinite(matrix)) or np.abs(matrix.T @ matrix - np.eye(3)).max() > SMALL_SKEW:
        return None
    left, _, right = np.linalg.svd(matrix)
    axes = left @ right
    middle = np.asarray(geometry.spacing[::-1]) * (np.asarray(geometry.size[::-1]) - 1) / 2
    x, y, z = np.asarray(geometry.origin) + (matrix - axes) @ middle
    return Geometry(geometry.size, geometry.spacing, (float(x), float(y), float(z)), tuple(float(value) for value in axes.ravel()))


def stored_geometry(path: Path) -> Geometry | None:
    """The grid as a file's header has it, at right angles or not; ``None`` where the header cannot be read as one of a 3D image."""
    if nifti_header.is_nifti(path):
        header = nifti_header.read_header(path)
        return None if header is None or header.sform is None else _of_sform(header)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # the caller has the reason already, from reading the file
        return None
    dimension = reader.GetDimension()
    if dimension < 3:
        return None
    x, y, z = reader.GetSize()[:3]
    dx, dy, dz = reader.GetSpacing()[:3]
    ox, oy, oz = reader.GetOrigin()[:3]
    matrix = np.asarray(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    return Geometry((z, y, x), (dz, dy, dx), (ox, oy, oz), tuple(float(value) for value in matrix.ravel()))


def nearly_straight(path: Path) -> bool:
    """Whether a file's axes can be put straight without resampling."""
    geometry = stored_geometry(path)
    return geometry is not None and straightened(geometry) is not None


def straighten_nifti(content: bytearray, geometry: Geometry) -> None:
    """Writes a straight grid into the header of the NIfTI-1 file ``content``, in place: the sform, without qform."""
    columns = np.asarray(geometry.direction).reshape(3, 3) * np.asarray(geometry.spacing[::-1])
    rows = np.concatenate([columns, np.asarray(geometry.origin)[:, None]], axis=1)
    rows[:2] *= -1  # LPS to NIfTI's RAS
    nifti_header.set_sform(content, rows.ravel().tolist(), geometry.spacing[::-1])


def _of_sform(header: nifti_header.NiftiHeader) -> Geometry | None:
    rows = np.asarray(header.sform, dtype=np.float64).reshape(3, 4)
    rows[:2] *= -1  # NIfTI's RAS to LPS
    lengths = np.linalg.norm(rows[:, :3], axis=0)
    if len(header.shape) < 3 or not np.all(np.isfinite(rows)) or np.any(lengths == 0):
        return None
    x, y, z = header.shape[:3]
    dx, dy, dz = (float(length) for length in lengths)
    ox, oy, oz = (float(value) for value in rows[:, 3])
    return Geometry((z, y, x), (dz, dy, dx), (ox, oy, oz), tuple(float(value) for value in (rows[:, :3] / lengths).ravel()))
