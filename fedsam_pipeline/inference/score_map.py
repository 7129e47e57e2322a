"""Scores of a whole volume on disk, for what has to be added up before it can leave."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import make_folder

DTYPE = np.dtype(np.float16)
"""probabilities, at most 1, are off by at most 1/4096 after each addition"""


class ScoreMap:
    """Half-precision scores (S, K, H, W), zero at first, in a file without a name: it is gone however the process ends.

    Slices are read and written, not mapped: pages of a mapped file count as the process's memory, and a mapped file on a disk that runs
    full ends the process without a word.

    Args:
        shape: (S, K, H, W).
        folder: on the disk that holds the file.

    Raises:
        FedsamError: the folder cannot be written to, or the disk lacks the space.
    """

    def __init__(self, shape: tuple[int, int, int, int], folder: Path) -> None:
        self.shape = shape
        self._folder = folder
        self._slice_values = shape[1] * shape[2] * shape[3]
        make_folder(folder)
        self._needed = shape[0] * self._slice_values * DTYPE.itemsize
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
        stored = np.empty((count, *self.shape[1:]), dtype=DTYPE)
        self._file.seek(first * self._slice_values * DTYPE.itemsize)
        if self._file.readinto(stored.data.cast("B")) != stored.nbytes:
            raise EOFError(f"slices {first} to {first + count - 1} of {self.shape[0]} are not in the map")
        return stored.astype(np.float32)

    def add(self, first: int, scores: NDArray[np.float32]) -> None:
        """Adds (n, K, H, W) to the slices from ``first`` on.

        Raises:
            FedsamError: the disk is full.
        """
        total = (self.read(first, len(scores)) + scores).astype(DTYPE)
        with self._clear_refusal():
            self._file.seek(first * self._slice_values * DTYPE.itemsize)
            self._file.write(total.data.cast("B"))
            self._file.flush()

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
            fix="make space, write to another disk, or predict with one fold (-f 0)",
        )
