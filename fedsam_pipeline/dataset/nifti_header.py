"""The bytes of a NIfTI file that SimpleITK does not keep or does not judge.

*Placement.* SimpleITK turns a rotated sform into a quaternion and back, which moves its numbers by up to 5e-7. A mask must lie exactly on
its image, so these fields are copied from the image's header into the mask's, byte for byte.

*Voxels.* ITK's NIfTI reader turns NaN and infinity into 0 and fills up a file that was cut off, both without a word. The bytes are
looked at here before it reads them.

Field offsets: nifti1.h (Cox et al., "A (sort of) new image data format standard: NIfTI-1", 2004).
"""

import gzip
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

HEADER_BYTES = 348
_NIFTI_2_HEADER_BYTES = 540
_CHUNK_BYTES = 1 << 22
_FLOAT_TYPES = {16: "f4", 64: "f8"}
"""NIfTI's datatype code of the scalar types that have NaN, as numpy names"""
_PLACEMENT_FIELDS = (
    (76, 8, 4),  # pixdim: the handedness of the quaternion, voxel sizes
    (123, 1, 1),  # xyzt_units
    (252, 2, 2),  # qform_code, sform_code
    (256, 6, 4),  # quatern_b/c/d, qoffset_x/y/z
    (280, 12, 4),  # srow_x/y/z
)
"""(offset, how many numbers, bytes of each)"""


@dataclass(frozen=True)
class NiftiHeader:
    """The fields of one header that matter here.

    Args:
        raw: the header's bytes.
        order: ``<`` little endian, ``>`` big endian.
        shape: voxels along (x, y, z, ...).
        datatype: NIfTI's code of the voxels' number type.
        bits: bits a voxel.
        data_offset: where the voxels begin.
        sform: the affine's 12 numbers, row by row, or ``None`` where the header has none.
    """

    raw: bytes
    order: Literal["<", ">"]
    shape: tuple[int, ...]
    datatype: int
    bits: int
    data_offset: int
    sform: tuple[float, ...] | None

    @property
    def data_bytes(self) -> int:
        """Bytes that all voxels take."""
        return math.prod(max(1, extent) for extent in self.shape) * self.bits // 8


def is_nifti(path: Path) -> bool:
    """Whether the file's name is that of a single-file NIfTI image."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_header(path: Path) -> NiftiHeader | None:
    """The header of a NIfTI-1 file, or ``None`` where the bytes are something else.

    Raises:
        ValueError: a NIfTI-2 file, which ITK does not read.
        OSError, EOFError, zlib.error: unreadable file.
    """
    with _open(path) as stream:
        raw = bytes(stream.read(HEADER_BYTES))
    header = parse_header(raw)
    if header is None and len(raw) >= 4 and _NIFTI_2_HEADER_BYTES in (*struct.unpack_from("<i", raw), *struct.unpack_from(">i", raw)):
        raise ValueError("the NIfTI-2 format; convert the file to NIfTI-1")
    return header


def parse_header(raw: bytes) -> NiftiHeader | None:
    """As ``read_header``, from the file's first bytes."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        if len(raw) >= HEADER_BYTES and struct.unpack_from(f"{order}i", raw) == (HEADER_BYTES,):
            dim = struct.unpack_from(f"{order}8h", raw, 40)
            datatype, bits = struct.unpack_from(f"{order}2h", raw, 70)
            (offset,) = struct.unpack_from(f"{order}f", raw, 108)
            (code,) = struct.unpack_from(f"{order}h", raw, 254)
            rows = struct.unpack_from(f"{order}12f", raw, 280) if code > 0 else None
            shape = tuple(dim[1 : 1 + max(0, dim[0])])
            return NiftiHeader(raw[:HEADER_BYTES], order, shape, datatype, bits, int(offset), rows)
    return None


def scan_voxels(path: Path, header: NiftiHeader) -> int:
    """Checks that all voxels are there, and counts those that are NaN or infinite.

    Whole numbers need no look, and a gzip file ends with its uncompressed size (RFC 1952), so only floating-point files are read twice.

    Raises:
        EOFError: fewer bytes than the header promises.
        OSError, zlib.error: broken compression.
    """
    expected = header.data_offset + header.data_bytes
    kind = _FLOAT_TYPES.get(header.datatype)
    if kind is None and _stored_size(path) == expected:
        return 0
    found = header.data_offset
    bad = 0
    with _open(path) as stream:
        stream.seek(header.data_offset)
        for chunk in _chunks(stream, header.data_bytes):
            found += len(chunk)
            if kind is not None:
                numbers = np.frombuffer(chunk, dtype=f"{header.order}{kind}", count=len(chunk) // int(kind[1]))
                bad += numbers.size - int(np.isfinite(numbers).sum())
    if found < expected:
        raise EOFError(f"{found:,} bytes, but the header promises {expected:,}: the file is cut off")
    return bad


def copy_placement(source: NiftiHeader, target: bytearray) -> None:
    """Copies voxel sizes, units, qform and sform from ``source`` into the file ``target``, in place; its byte order is kept."""
    mine = parse_header(bytes(target[:HEADER_BYTES]))
    if mine is None:
        raise ValueError("the target is no NIfTI-1 file")
    for offset, count, width in _PLACEMENT_FIELDS:
        for start in range(offset, offset + count * width, width):
            number = source.raw[start : start + width]
            target[start : start + width] = number if mine.order == source.order else number[::-1]


def set_sform(target: bytearray, rows: Sequence[float], spacing: Sequence[float]) -> None:
    """Writes an affine into the header of the file ``target``, in place, as the only one: the qform is switched off.

    Args:
        target: the file's bytes.
        rows: the affine's 12 numbers, row by row, NIfTI's RAS axes, mm.
        spacing: mm, (x, y, z).
    """
    mine = parse_header(bytes(target[:HEADER_BYTES]))
    if mine is None:
        raise ValueError("the target is no NIfTI-1 file")
    struct.pack_into(f"{mine.order}3f", target, 80, *spacing)
    struct.pack_into(f"{mine.order}2h", target, 252, 0, 2)  # qform: none; sform: aligned to something
    struct.pack_into(f"{mine.order}12f", target, 280, *rows)


def read_content(path: Path) -> bytearray:
    """All bytes of a NIfTI file, uncompressed."""
    with _open(path) as stream:
        return bytearray(stream.read())


def _is_compressed(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if _is_compressed(path) else open(path, "rb")  # type: ignore[return-value]


def _stored_size(path: Path) -> int:
    """Bytes of the uncompressed file; for gzip what its last four bytes say (modulo 4 GiB)."""
    with open(path, "rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
        size = stream.seek(0, os.SEEK_END)
        if compressed and size >= 4:
            stream.seek(-4, os.SEEK_END)
            (size,) = struct.unpack("<I", stream.read(4))
    return int(size)


def _chunks(stream: BinaryIO, total: int) -> Iterator[bytes]:
    """At most ``total`` bytes in pieces; every piece but the last holds whole numbers."""
    left = total
    while left > 0:
        piece = stream.read(min(_CHUNK_BYTES, left))
        if not piece:
            return
        left -= len(piece)
        yield piece
