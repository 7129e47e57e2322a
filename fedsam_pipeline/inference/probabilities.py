"""Class probabilities beside a mask, on the image's own grid: what ``fedsam_ensemble`` averages.

``CASE_probabilities.b2nd`` is a blosc2 array (K, Z, Y, X), float16, compressed in cubes within chunks of
whole slices, so that slabs along any axis can be read. Its
metadata (``vlmeta``) holds ``schema_version``, ``geometry`` and ``labels``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from numpy.typing import NDArray

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import part_from_canonical
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path
from fedsam_pipeline.inference.export import original_geometry
from fedsam_pipeline.specs.case import CaseProperties

SCHEMA_VERSION = 1
ENDING = "_probabilities.b2nd"
CUBE = 32
"""voxels of a compressed block along each axis: 64 KB"""
AGAIN = "predict again with --save_probabilities"


def probabilities_path(mask: Path, case: str) -> Path:
    """Where the probabilities lie that belong to a mask."""
    return mask.with_name(f"{case}{ENDING}")


class ProbabilityWriter:
    """Gathers native slices and writes them as soon as a chunk is complete; a sink of ``export_stream``.

    In memory are the float16 probabilities of ``depth`` native slices, twice while they are written.
    """

    def __init__(self, array: Any, properties: CaseProperties, *, are_logits: bool, axis: int, depth: int) -> None:
        """The sink of one case.

        Args:
            array: the file's, (K, Z, Y, X).
            properties: of the case.
            are_logits: a softmax makes probabilities of what comes.
            axis: of the array along which slices come.
            depth: slices at a time; those of a chunk along ``axis``.
        """
        self._array = array
        self._properties = properties
        self._are_logits = are_logits
        self._geometry = original_geometry(properties)
        self._axis = properties.slice_axis
        self._depth = depth
        length = properties.canonical_size[self._axis]
        _, place = part_from_canonical(np.empty((1, 1, 1)), (0, 0, 0), self._geometry)
        self._first_depth = length % depth or depth if place[axis].start else depth  # from the last slice on: chunks stay whole
        size = properties.canonical_size
        self._rows, self._columns = (
            slice(first, first + length)
            for axis, (first, length) in enumerate(zip(properties.crop_start, properties.crop_size, strict=True))
            if axis != self._axis
        )
        self._plane = tuple(length for axis, length in enumerate(size) if axis != self._axis)
        self._waiting: list[NDArray[np.float16]] = []
        self._written = 0
        for _ in range(properties.crop_start[self._axis]):
            self._push(self._background())

    def add(self, scores: torch.Tensor) -> None:
        """(K, h, w) of the next slice of the crop."""
        plane = self._background()
        plane[:, self._rows, self._columns] = (scores.softmax(dim=0) if self._are_logits else scores).numpy()
        self._push(plane)

    def finish(self) -> None:
        """Writes what is left; what lies behind the crop is background."""
        missing = self._properties.canonical_size[self._axis] - self._written - len(self._waiting)
        for _ in range(missing):
            self._push(self._background())
        self._flush()

    def _background(self) -> NDArray[np.float16]:
        plane = np.zeros((self._array.shape[0], *self._plane), dtype=np.float16)
        plane[0] = 1
        return plane

    def _push(self, plane: NDArray[np.float16]) -> None:
        self._waiting.append(plane)
        if len(self._waiting) == (self._depth if self._written else self._first_depth):
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        part = np.stack(self._waiting, axis=1 + self._axis)
        start = [self._written if axis == self._axis else 0 for axis in range(3)]
        self._written += len(self._waiting)
        self._waiting.clear()
        turned, place = part_from_canonical(part, start, self._geometry)
        self._array[(slice(None), *place)] = turned


@contextmanager
def write_probabilities(
    path: Path, properties: CaseProperties, labels: Mapping[str, int], *, are_logits: bool, depth: int = CUBE
) -> Iterator[ProbabilityWriter]:
    """Yields the sink for ``export_stream``; the file is there once the block is left without an error.

    Args:
        path: see ``probabilities_path``.
        properties: what preprocessing did to the case.
        labels: label name to class number.
        are_logits: what the sink will be given are logits.
        depth: native slices that are written at a time.

    Raises:
        FedsamError: the folder cannot be written to.
    """
    geometry = original_geometry(properties)
    axis = 2 - geometry.canonical_axes()[0][2 - properties.slice_axis]  # of the file; orders are of (x, y, z)
    depth = min(depth, geometry.size[axis])
    with atomic_path(path) as temporary:
        array = new_array(temporary, geometry, labels, axis=axis, depth=depth)
        writer = ProbabilityWriter(array, properties, are_logits=are_logits, axis=axis, depth=depth)
        yield writer
        writer.finish()


def new_array(path: Path, geometry: Geometry, labels: Mapping[str, int], *, axis: int = 0, depth: int = CUBE) -> Any:
    """An empty file of probabilities; slices are assigned to the blosc2 array (K, Z, Y, X).

    Args:
        path: the file.
        geometry: its grid.
        labels: label name to class number.
        axis: of (z, y, x), along which it will be written.
        depth: slices that will be written at a time. What is written in parts would be compressed as many times.
    """
    chunk = [min(depth, length) if number == axis else length for number, length in enumerate(geometry.size)]
    array = blosc2.empty(
        shape=(len(labels), *geometry.size),
        dtype=np.dtype(np.float16),
        chunks=(1, *chunk),
        blocks=(1, *(min(CUBE, length) for length in chunk)),
        urlpath=str(path),
        mode="w",
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1},
        dparams={"nthreads": 1},
    )
    meta = array.schunk.vlmeta
    meta["schema_version"], meta["geometry"], meta["labels"] = SCHEMA_VERSION, geometry.to_dict(), dict(labels)
    return array


@dataclass(frozen=True)
class Probabilities:
    """An opened file; slice ``array`` as ``array[:, 0:8]``, or the whole of it as ``array[:]``.

    Attributes:
        array: blosc2 array (K, Z, Y, X), float16, on the image's own grid.
        geometry: that grid.
        labels: label name to class number.
    """

    path: Path
    array: Any
    geometry: Geometry
    labels: dict[str, int]


def open_probabilities(path: Path) -> Probabilities:
    """Opens a file of probabilities; nothing is read but what it says of itself.

    Raises:
        FedsamError: missing, broken, of another kind, or of another version.
    """
    if not path.is_file():
        raise FedsamError("a file of probabilities is missing", path=path, fix=AGAIN)
    try:
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        meta = array.schunk.vlmeta
        version = meta["schema_version"]
        geometry, labels = Geometry.from_dict(meta["geometry"]), {str(name): int(value) for name, value in meta["labels"].items()}
        fits = array.shape == (len(labels), *geometry.size) and array.dtype == np.float16
    except Exception as error:  # blosc2 raises errors of every kind for a broken file
        raise FedsamError("a file of probabilities cannot be read", path=path, found=str(error), expected=ENDING, fix=AGAIN) from error
    if version != SCHEMA_VERSION or not fits:
        raise FedsamError(
            "a file of probabilities is of another kind",
            path=path,
            found=f"schema_version {version}, {array.dtype} {tuple(array.shape)}",
            expected=f"schema_version {SCHEMA_VERSION}, float16 {(len(labels), *geometry.size)}",
            fix=AGAIN,
        )
    return Probabilities(path, array, geometry, labels)
