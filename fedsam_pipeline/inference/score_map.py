"""Scores of a whole volume on disk, for what has to be added up before it can leave."""

import errno
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import make_folder
from fedsam_pipeline.preprocessing.views import AS_STORED, Order

DTYPE = np.dtype(np.float16)
"""probabilities, at most 1, are off by at most 1/4096 after each addition"""
CUBE = 16
"""side of a cell where slices come along several axes: about as many as a batch has, so that few cells are written twice"""


class ScoreMap:
    """Half-precision scores (S, K, H, W), zero at first, in a file without a name: it is gone however the process ends.

    Slices are read and written, not mapped: pages of a mapped file count as the process's memory, and a mapped file on a disk that runs
    full ends the process without a word.

    The file holds one cell after the other, each of all classes: whole slices where all slices come along S, cubes where some come along
    H or W, so that those do not touch every row of the file.

    Args:
        shape: (S, K, H, W).
        folder: on the disk that holds the file.
        cubes: slices will come along other axes than S.

    Raises:
        FedsamError: the folder cannot be written to, or the disk lacks the space.
    """

    def __init__(self, shape: tuple[int, int, int, int], folder: Path, *, cubes: bool = False) -> None:
        self.shape = shape
        self._folder = folder
        self._size = (shape[0], shape[2], shape[3])
        self._cell = (CUBE,) * 3 if cubes else (1, *self._size[1:])
        make_folder(folder)
        self._needed = math.prod(shape) * DTYPE.itemsize
        if shutil.disk_usage(folder).free < self._needed:
            raise self._no_space()
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by close)
        self._file.truncate(self._needed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the space back."""
        self._file.close()

    def read(self, first: int, count: int) -> NDArray[np.float32]:
        """Slices ``first .. first + count - 1``, (count, K, H, W)."""
        if first + count > self.shape[0]:
            raise EOFError(f"slices {first} to {first + count - 1} of {self.shape[0]} are not in the map")
        scores = np.empty((count, *self.shape[1:]), dtype=np.float32)
        for cell in self._cells((first, 0, 0), (first + count, *self._size[1:])):
            inside, place = _overlap(cell, (first, 0, 0), scores[:, 0].shape)
            scores[place[0], :, place[1], place[2]] = self._load(cell)[inside[0], :, inside[1], inside[2]]
        return scores

    def add(self, first: int, scores: NDArray[np.float32], order: Order = AS_STORED) -> None:
        """Adds (n, K, h, w) to the slices from ``first`` on.

        Args:
            first: the first of them.
            scores: along the axis ``order[0]`` of (S, H, W), rows and columns along the other two.
            order: see ``View.order``.

        Raises:
            FedsamError: the disk is full.
        """
        axes = [(0, 2, 3)[order.index(axis)] for axis in range(3)]
        scores = scores.transpose(axes[0], 1, axes[1], axes[2])
        start = [first if axis == order[0] else 0 for axis in range(3)]
        for cell in self._cells(start, [low + length for low, length in zip(start, scores[:, 0].shape, strict=True)]):
            inside, place = _overlap(cell, start, scores[:, 0].shape)
            total = self._load(cell)
            total[inside[0], :, inside[1], inside[2]] += scores[place[0], :, place[1], place[2]]  # in float32, then rounded
            with self._clear_refusal():
                self._file.seek(self._position(cell))
                self._file.write(total.data.cast("B"))
        with self._clear_refusal():
            self._file.flush()

    def _cells(self, start: Sequence[int], end: Sequence[int]) -> Iterator[tuple[slice, ...]]:
        """The cells (s, h, w) that hold any of these voxels, in the order of the file."""
        ranges = [
            [slice(low, min(low + side, size)) for low in range(a // side * side, b, side)]
            for a, b, side, size in zip(start, end, self._cell, self._size, strict=True)
        ]
        return product(*ranges)

    def _position(self, cell: tuple[slice, ...]) -> int:
        """Of its first byte: before it lie whole layers, within its layer whole rows of cells, and in its row other cells."""
        s, h, w = cell
        layer, row = s.stop - s.start, h.stop - h.start
        voxels = s.start * self._size[1] * self._size[2] + layer * (h.start * self._size[2] + row * w.start)
        return int(voxels * self.shape[1] * DTYPE.itemsize)

    def _load(self, cell: tuple[slice, ...]) -> NDArray[np.float16]:
        """(s, K, h, w)."""
        s, h, w = (part.stop - part.start for part in cell)
        stored = np.empty((s, self.shape[1], h, w), dtype=DTYPE)
        self._file.seek(self._position(cell))
        if self._file.readinto(stored.data.cast("B")) != stored.nbytes:
            raise EOFError(f"the map ends before cell {cell}")
        return stored

    @contextmanager
    def _clear_refusal(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._no_space() from error

    def _no_space(self) -> FedsamError:
        return FedsamError(
            "no space for the probabilities of an ensemble",
            path=self._folder,
            found=f"{shutil.disk_usage(self._folder).free / 1e9:.1f} GB free",
            expected=f"{self._needed / 1e9:.1f} GB for as long as the case takes",
            fix="make space or write to another disk; one fold (-f 0) of a model with one view needs none",
        )


def _overlap(cell: tuple[slice, ...], start: Sequence[int], size: Sequence[int]) -> tuple[list[slice], list[slice]]:
    """The voxels that a cell shares with a box, counted from the cell's first and from the box's."""
    ends = [(max(part.start, low), min(part.stop, low + length)) for part, low, length in zip(cell, start, size, strict=True)]
    inside = [slice(a - part.start, b - part.start) for part, (a, b) in zip(cell, ends, strict=True)]
    return inside, [slice(a - low, b - low) for low, (a, b) in zip(start, ends, strict=True)]
