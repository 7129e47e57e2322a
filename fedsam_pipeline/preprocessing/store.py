"""The preprocessed store: one folder a set of preprocessing keys, three files a case.

``CASE.b2nd`` holds the image, float32 (C, S, H, W); ``CASE_seg.b2nd`` the labels, int8 or int16 (S, H, W); both are blosc2 arrays
compressed in chunks of a few whole slices, because training and inference read slabs. ``CASE.json`` is written last: a case without it
does not count as done.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path, read_json, write_text
from fedsam_pipeline.specs.canonical import canonical_json
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.document import Document
from fedsam_pipeline.specs.plans import Plans

CHUNK_BYTES = 1 << 18
"""aim for chunks of about this many bytes: small enough that a slab touches few of them, large enough to compress"""

log = logging.getLogger(__name__)

REMAKE = "run fedsam_plan_and_preprocess again; it redoes what is missing"


class CaseRecord(Document):
    """``CASE.json``."""

    schema_version: int = 1
    properties: CaseProperties
    preprocessing_sha256: str
    """``Plans.preprocessing_sha256()`` of the plan that made the case"""
    inputs_sha256: str
    """signature of the case's raw files (``input_signature``)"""
    shape: tuple[int, int, int, int]
    """(C, S, H, W)"""
    foreground: dict[int, tuple[int, ...]]
    """class to sampled voxels of that class, as flat indices into (S, H, W), ascending"""
    annotated: tuple[int, ...] = ()
    """sampled voxels that are not ignored, background too; empty where no voxel of the case is ignored"""


@dataclass(frozen=True)
class StoredCase:
    """One opened case. The arrays are read lazily: slice them, as in ``case.image[:, 3:6]``."""

    folder: Path
    record: CaseRecord

    @property
    def properties(self) -> CaseProperties:
        """What preprocessing did to the case."""
        return self.record.properties

    @cached_property
    def image(self) -> Any:
        """blosc2 array (C, S, H, W), float32. ``FedsamError`` where the file is missing or broken."""
        return _open_array(self.folder / f"{self.properties.case}.b2nd", self.record.shape)

    @cached_property
    def labels(self) -> Any:
        """blosc2 array (S, H, W), int8 or int16, -1 where nobody annotated. ``FedsamError`` where the file is missing or broken."""
        return _open_array(self.folder / f"{self.properties.case}_seg.b2nd", self.record.shape[1:])

    @cached_property
    def foreground(self) -> dict[int, NDArray[np.int32]]:
        """class to (N, 3) sampled voxels (s, h, w) of that class, N <= 1000; classes that the case lacks are left out."""
        return {label: self._voxels(flat) for label, flat in self.record.foreground.items()}

    @cached_property
    def annotated(self) -> NDArray[np.int32]:
        """(N, 3) sampled voxels (s, h, w) that are not ignored, background too, N <= 1000; N = 0 where no voxel of the case is ignored."""
        return self._voxels(self.record.annotated)

    def _voxels(self, flat: tuple[int, ...]) -> NDArray[np.int32]:
        return np.stack(np.unravel_index(np.asarray(flat, dtype=np.int64), self.record.shape[1:]), axis=1).astype(np.int32)


class CaseStore:
    """A folder of preprocessed cases.

    Args:
        folder: the store's folder (``store_folder``); it need not exist before the first case is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def write(
        self,
        case: str,
        image: NDArray[np.float32],
        labels: NDArray[Any],
        properties: CaseProperties,
        foreground: Mapping[int, NDArray[Any]],
        annotated: NDArray[Any] | None = None,
        *,
        preprocessing_sha256: str = "",
        inputs_sha256: str = "",
    ) -> None:
        """Writes one case; it counts as done once this returns.

        Args:
            case: its name.
            image: (C, S, H, W) float32.
            labels: (S, H, W) int8 or int16.
            properties: what preprocessing did.
            foreground: class to (N, 3) voxels (s, h, w), from ``foreground_locations``.
            annotated: (N, 3) voxels, from ``annotated_locations``; ``None`` where no voxel is ignored.
            preprocessing_sha256: signature of the preprocessing keys of the plan.
            inputs_sha256: signature of the raw files.

        Raises:
            FedsamError: the folder cannot be written to.
            ValueError: shapes that do not fit each other, or another dtype.
        """
        if image.ndim != 4 or image.shape[1:] != labels.shape or case != properties.case:
            raise ValueError(f"case {case}: image {image.shape}, labels {labels.shape}, properties of {properties.case}")
        if image.dtype != np.float32 or labels.dtype not in (np.int8, np.int16):
            raise ValueError(f"case {case}: image dtype {image.dtype}, labels dtype {labels.dtype}")
        self._undo(case)
        _write_array(self.folder / f"{case}.b2nd", image)
        _write_array(self.folder / f"{case}_seg.b2nd", labels)
        record = CaseRecord(
            properties=properties,
            preprocessing_sha256=preprocessing_sha256,
            inputs_sha256=inputs_sha256,
            shape=image.shape,
            foreground={int(label): _flat(voxels, labels.shape) for label, voxels in sorted(foreground.items()) if len(voxels)},
            annotated=() if annotated is None else _flat(annotated, labels.shape),
        )
        write_text(self.folder / f"{case}.json", canonical_json(record.model_dump(mode="json")) + "\n")

    def _undo(self, case: str) -> None:
        """From here on until its record is written again, the case is not done."""
        path = self.folder / f"{case}.json"
        try:
            if path.exists():
                path.unlink()
        except PermissionError as error:
            raise FedsamError(
                "a preprocessed case cannot be replaced", path=path, found=str(error), fix=f"make {self.folder} writable"
            ) from error

    def cases(self) -> tuple[str, ...]:
        """Names of the finished cases, sorted."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.json") if not path.name.startswith(".")))

    def is_done(self, case: str, *, preprocessing_sha256: str, inputs_sha256: str) -> bool:
        """Whether the case is finished and was made of these raw files by this plan."""
        if not (self.folder / f"{case}.json").is_file():
            return False
        try:
            stored = self.open(case)
            last = (stored.image[..., -1:, :, :], stored.labels[-1:])  # decompresses: a file that was cut short fails here
        except (FedsamError, RuntimeError, OSError, ValueError) as error:
            log.warning("case %s is damaged in the store and made again: %s", case, error)
            return False
        del last
        record = stored.record
        return (record.preprocessing_sha256, record.inputs_sha256) == (preprocessing_sha256, inputs_sha256)

    def open(self, case: str) -> StoredCase:
        """One finished case.

        Raises:
            FedsamError: the case is not in the store, or its record is broken.
        """
        path = self.folder / f"{case}.json"
        if not path.is_file():
            raise FedsamError("a case is not in the preprocessed store", path=path, found=f"{len(self.cases())} other cases", fix=REMAKE)
        return StoredCase(self.folder, CaseRecord.from_dict(read_json(path, fix=REMAKE), path=path, fix=f"delete {path.name} and {REMAKE}"))


def store_folder(preprocessed: Path, plans: Plans) -> Path:
    """The store of a dataset's preprocessed folder that belongs to this plan."""
    return preprocessed / f"store_{plans.preprocessing_sha256()[:8]}"


def _flat(voxels: NDArray[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Voxels (N, 3) as flat indices, ascending."""
    return tuple(np.sort(np.ravel_multi_index(tuple(voxels.T), shape)).tolist())


def _write_array(path: Path, array: NDArray[Any]) -> None:
    *leading, num_slices, height, width = array.shape
    slices = max(1, min(num_slices, CHUNK_BYTES // max(1, height * width * array.itemsize * int(np.prod(leading)))))
    chunks = (*leading, slices, height, width)
    blocks = (*(1 for _ in leading), 1, height, width)  # one slice decompresses alone
    with atomic_path(path) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            mode="w",
            chunks=chunks,
            blocks=blocks,
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1},
            dparams={"nthreads": 1},
        )


def _open_array(path: Path, shape: tuple[int, ...]) -> Any:
    try:
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    except (OSError, RuntimeError, ValueError) as error:
        raise FedsamError("an array of the preprocessed store cannot be read", path=path, found=str(error), fix=REMAKE) from error
    if tuple(array.shape) != tuple(shape):
        raise FedsamError(
            "an array of the preprocessed store has the wrong shape", path=path, found=tuple(array.shape), expected=tuple(shape), fix=REMAKE
        )
    return array
