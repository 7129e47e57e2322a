"""Features of slabs and their labels on disk, by number: one file of records of one size.

The file begins with a line of JSON, padded to ``HEADER_BYTES``: what it was made from (a signature) and how a record is laid out. Each
record is eight bytes, then a slab's features, then its labels. The eight bytes are 2^32 plus the CRC-32 of the rest, so that a record that
was never written, or not to its end, is known as such. Records are read and written where they lie; none stays in memory.
"""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path

HEADER_BYTES = 4096
CHECK_BYTES = 8
WRITTEN = 1 << 32
"""added to a record's CRC-32, so that no record that was written begins with zeros"""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FREE_DISK = "free some disk, take a recipe with fewer cache.slabs_per_case, or one without [cache]"


@dataclass(frozen=True)
class RecordLayout:
    """One slab of D slices."""

    features: tuple[int, ...]
    """shape of its features in the order of their memory: (D, h, w, C)"""
    dtype: str
    """of the features: ``float32`` or ``bfloat16``"""
    channels_last: bool
    """whether the features are (D, C, h, w), kept in channels-last memory"""
    labels: tuple[int, int, int]
    """(D, size, size)"""
    label_dtype: str
    """``int8`` or ``int16``"""

    @classmethod
    def of(cls, features: Tensor, labels: tuple[int, int, int], num_classes: int) -> Self:
        """The layout for slabs with features like these, and labels below ``num_classes``, or -1."""
        last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
        shape = tuple(features.permute(0, 2, 3, 1).shape if last else features.shape)
        label_dtype = "int8" if num_classes <= np.iinfo(np.int8).max else "int16"
        return cls(shape, str(features.dtype).removeprefix("torch."), last, labels, label_dtype)

    def buffers(self, slabs: int) -> tuple[Tensor, Tensor]:
        """Uninitialised features (slabs, ...) and labels (slabs, ...) in the order of their memory."""
        features = torch.empty(slabs, *self.features, dtype=getattr(torch, self.dtype))
        return features, torch.empty(slabs, *self.labels, dtype=getattr(torch, self.label_dtype))

    @property
    def record_bytes(self) -> int:
        """Of one record."""
        features, labels = self.buffers(1)
        return CHECK_BYTES + features.nbytes + labels.nbytes


class FeatureFile:
    """The file, opened. Use it as a context manager.

    Args:
        path: the file, made by ``create``.
        descriptor: its open file descriptor.
        layout: of its records.
    """

    def __init__(self, path: Path, descriptor: int, layout: RecordLayout) -> None:
        self.path, self.layout = path, layout
        self._descriptor, self._record_bytes = descriptor, layout.record_bytes

    @classmethod
    def open(cls, path: Path, signature: str) -> Self | None:
        """The file that is there; ``None`` where there is none, or one made from something else."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(path, error) from error
        try:
            header = _header(os.pread(descriptor, HEADER_BYTES, 0))
        except OSError as error:
            os.close(descriptor)
            raise _refused(path, error) from error
        if header is None or header[0] != signature:
            os.close(descriptor)
            return None
        return cls(path, descriptor, header[1])

    @classmethod
    def create(cls, path: Path, signature: str, layout: RecordLayout, records: int) -> Self:
        """A file without any record yet, in the place of one that was there.

        Args:
            path: where.
            signature: of all that decides the records.
            layout: of each.
            records: how many there can be.

        Raises:
            FedsamError: the folder cannot be written to, or the disk does not hold that many records.
        """
        header = json.dumps({"signature": signature, "records": records, "layout": asdict(layout)}).encode()
        needed = HEADER_BYTES + records * layout.record_bytes
        with atomic_path(path) as temporary:
            path.unlink(missing_ok=True)  # what another run kept makes room
            free = shutil.disk_usage(path.parent).free
            if free < needed:
                raise FedsamError(
                    "the disk cannot hold the features of the frozen part of the encoder",
                    path=path,
                    found=f"{free >> 20} MiB free",
                    expected=f"{needed >> 20} MiB: {records} slabs of {layout.record_bytes / 2**20:.1f} MiB",
                    fix=FREE_DISK,
                )
            temporary.write_bytes(header.ljust(HEADER_BYTES))
            os.truncate(temporary, needed)  # takes room on the disk only as records are written
        opened = cls.open(path, signature)
        assert opened is not None
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, number: int, features: Tensor, labels: Tensor) -> None:
        """Keeps a slab.

        Args:
            number: of its record.
            features, labels: as the layout says, or (D, C, h, w) in channels-last memory.

        Raises:
            FedsamError: the disk is full.
        """
        ordered = features.permute(0, 2, 3, 1) if self.layout.channels_last else features
        kept = labels.to(getattr(torch, self.layout.label_dtype))
        if tuple(ordered.shape) != self.layout.features or tuple(kept.shape) != self.layout.labels:
            raise ValueError(f"a slab of {tuple(ordered.shape)} does not fit records of {self.layout.features}")
        content = [_bytes(ordered.cpu().contiguous()), _bytes(kept.cpu().contiguous())]
        whole = b"".join([_check(content), *(part.tobytes() for part in content)])
        try:
            at = self._offset(number)
            while whole:  # a disk that fills up takes a part first
                written = os.pwrite(self._descriptor, whole, at)
                whole, at = whole[written:], at + written
        except OSError as error:
            raise _refused(self.path, error) from error

    def read_into(self, number: int, features: Tensor, labels: Tensor) -> bool:
        """Fills a row of each of the layout's ``buffers`` with a slab's record.

        Returns:
            Whether the record is there and whole; else the rows hold anything.
        """
        check, content = bytearray(CHECK_BYTES), [_bytes(features), _bytes(labels)]
        try:
            found = os.preadv(self._descriptor, [check, *content], self._offset(number))
        except OSError as error:
            raise _refused(self.path, error) from error
        return found == self._record_bytes and check == _check(content)

    def shaped(self, features: Tensor) -> Tensor:
        """(slabs, D, ...) in the order of memory to (slabs * D, ...) as the encoder gave it; no copy."""
        flat = features.flatten(0, 1)
        return flat.permute(0, 3, 1, 2) if self.layout.channels_last else flat

    def _offset(self, number: int) -> int:
        return HEADER_BYTES + number * self._record_bytes


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _check(content: Sequence[memoryview]) -> bytes:
    value = 0
    for part in content:
        value = zlib.crc32(part, value)
    return (WRITTEN + value).to_bytes(CHECK_BYTES, "little")


def _header(start: bytes) -> tuple[str, RecordLayout] | None:
    """Signature and layout that the file states; ``None`` where it is no such file."""
    try:
        header = json.loads(start)
        values = header["layout"]
        return str(header["signature"]), RecordLayout(**values | {key: tuple(values[key]) for key in ("features", "labels")})
    except (ValueError, TypeError, KeyError):
        return None


def _refused(path: Path, error: OSError) -> FedsamError:
    full = error.errno in FULL
    return FedsamError(
        "the disk is full: the features of the frozen part of the encoder cannot be kept" if full else "kept features cannot be used",
        path=path,
        found=str(error),
        fix=FREE_DISK if full else "delete the file; it is made anew",
    )
