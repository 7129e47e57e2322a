"""Tiny files for the converters, and what every conversion must do."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.volume import Geometry, write_image, write_labels
from fedsam_pipeline.errors import FedsamError

GRID = Geometry((3, 4, 5), (3.0, 1.0, 0.5), (-10.0, 20.0, 30.0), (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
Convert = Callable[..., RawDataset]


def write_scan(path: Path, seed: int = 0, grid: Geometry = GRID) -> None:
    """An image that differs from every other seed's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(seed).normal(size=grid.size).astype(np.float32), grid)


def write_mask(path: Path, values: Sequence[int], grid: Geometry = GRID) -> None:
    """A mask whose first voxels hold ``values``, the others 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(grid.size, np.uint8)
    labels.flat[: len(values)] = values
    write_labels(path, labels, grid)


def unpacked(path: Path) -> bytes:
    """A file's bytes, uncompressed."""
    return gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()


def refused(convert: Convert, source: Path, root: Path, **keywords: Any) -> str:
    """The error of a conversion, which leaves nothing behind."""
    before = sorted(root.rglob("*")) if root.exists() else []
    with pytest.raises(FedsamError) as caught:
        convert(source, root, **{"number": 7} | keywords)
    assert (sorted(root.rglob("*")) if root.exists() else []) == before
    return str(caught.value)


def values_of(dataset: RawDataset, case: str) -> set[int]:
    """The values of a converted mask; the case is one that the pipeline takes."""
    return set(np.unique(verify_case(dataset, case)[1].array).tolist())
