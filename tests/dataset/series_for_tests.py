"""Tiny DICOM series, written by SimpleITK."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from fedsam_pipeline.dataset.volume import Geometry

sitk: Any = SimpleITK
ROOT_UID = "1.2.826.0.1.3680043.2.1125.7"
FRAME_OF_REFERENCE = {"0020|0052": f"{ROOT_UID}.8"}
"""a tag that real series have and these have only on demand"""
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
GRID = Geometry((4, 5, 6), (2.5, 0.7, 0.6), (-10.0, -20.0, 30.0), STRAIGHT)


def hounsfield(size: tuple[int, int, int] = GRID.size, seed: int = 0) -> NDArray[np.float32]:
    """Whole HU, (Z, Y, X)."""
    return np.random.default_rng(seed).integers(-1000, 1000, size).astype(np.float32)


def write_series(
    folder: Path,
    array: NDArray[Any],
    grid: Geometry = GRID,
    *,
    series: str = "1",
    slopes: Sequence[float] | None = None,
    intercept: float = -1024.0,
    positions: Sequence[Sequence[float]] | None = None,
    prefix: str = "slice",
    reverse: bool = True,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """One file a slice; stored numbers are ``(value - intercept) / slope``.

    Args:
        folder: where to.
        array: values after rescaling, (Z, Y, X).
        grid: of the volume.
        series: last part of the series' UID.
        slopes: rescale slope of each slice; 1 without.
        intercept: rescale intercept.
        positions: of each slice in place of the grid's, LPS, mm.
        prefix: of the files' names.
        reverse: name the files against the order of their positions.
        tags: more of them, for every slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = np.asarray(grid.direction).reshape(3, 3)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, values in enumerate(array):
        image = sitk.GetImageFromArray(values.astype(np.float32))
        image.SetSpacing((grid.spacing[2], grid.spacing[1]))
        place = np.asarray(grid.origin) + columns[:, 2] * grid.spacing[0] * index if positions is None else positions[index]
        written = {
            "0008|0060": "CT",
            "0008|103e": "abdomen",
            "0008|0018": f"{ROOT_UID}.{series}.{index + 1}",
            "0020|000d": f"{ROOT_UID}.0",
            "0020|000e": f"{ROOT_UID}.{series}",
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in place),
            "0020|0037": "\\".join(f"{value:.9f}" for value in (*columns[:, 0], *columns[:, 1])),
            "0028|0100": "16",
            "0028|0101": "16",
            "0028|0102": "15",
            "0028|0103": "1",
            "0028|1052": str(intercept),
            "0028|1053": str(1.0 if slopes is None else slopes[index]),
        }
        for key, value in (written | dict(tags or {})).items():
            image.SetMetaData(key, value)
        number = len(array) - index if reverse else index
        writer.SetFileName(str(folder / f"{prefix}{number:03d}.dcm"))
        writer.Execute(image)
    return folder
