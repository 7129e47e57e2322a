"""Masks of a fold's final evaluation, kept on the site's disk until postprocessing has been chosen from all folds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path
from fedsam_pipeline.specs.document import Document

MASKS_FOLDER, INDEX_FILE = "validation_masks", "index.json"
AGAIN = "train this fold again"


class MaskIndex(Document):
    """``index.json`` beside the masks; written last, so that a folder with it is complete."""

    schema_version: Literal[1] = 1
    preprocessing_sha256: str
    """of the plan on whose grid the masks are"""
    cases: dict[str, str]
    """case to the site that it is reported under"""
    released_with: tuple[str, ...] = ()
    """the folds whose cases were first summed up together with these, this one included; empty: nothing of these has left the site"""


class KeptMasks:
    """The masks of one fold at one site.

    Args:
        state_folder: the site's, of that fold.
    """

    def __init__(self, state_folder: Path) -> None:
        self._folder = state_folder / MASKS_FOLDER

    def clear(self) -> None:
        """Forgets all masks."""
        for path in (self._folder / INDEX_FILE, *self._folder.glob("*.b2nd")):
            path.unlink(missing_ok=True)

    def add(self, case: str, mask: NDArray[Any]) -> None:
        """Keeps (S, H, W) class numbers, compressed; the type is the smallest that holds 256 classes, or 65536.

        Raises:
            FedsamError: the folder cannot be written to.
        """
        small = np.ascontiguousarray(mask, dtype=np.uint8 if int(mask.max(initial=0)) < 256 else np.uint16)
        with atomic_path(self._folder / f"{case}.b2nd") as temporary:
            blosc2.asarray(
                small,
                urlpath=str(temporary),
                mode="w",
                cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1},
                dparams={"nthreads": 1},
            )

    def finish(self, preprocessing_sha256: str, cases: Mapping[str, str]) -> None:
        """All masks are there."""
        self.note(MaskIndex(preprocessing_sha256=preprocessing_sha256, cases=dict(cases)))

    def note(self, index: MaskIndex) -> None:
        """Writes the index."""
        index.save(self._folder / INDEX_FILE)

    def index(self) -> MaskIndex | None:
        """What is kept; ``None`` where nothing is, or not all.

        Raises:
            FedsamError: the file is broken.
        """
        path = self._folder / INDEX_FILE
        return MaskIndex.load(path, fix=f"delete {path.name}, or {AGAIN}") if path.is_file() else None

    def read(self, case: str, shape: tuple[int, ...]) -> NDArray[np.unsignedinteger]:
        """The mask of a case.

        Raises:
            FedsamError: the file is missing, broken or of another shape.
        """
        path = self._folder / f"{case}.b2nd"
        try:
            mask: NDArray[np.unsignedinteger] = np.asarray(blosc2.open(str(path), mode="r", dparams={"nthreads": 1})[:])
        except (OSError, RuntimeError, ValueError) as error:
            raise FedsamError("a kept mask cannot be read", path=path, found=str(error), fix=AGAIN) from error
        if mask.shape != shape:
            raise FedsamError("a kept mask has another shape than its case", path=path, found=mask.shape, expected=shape, fix=AGAIN)
        return mask
