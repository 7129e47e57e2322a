"""Files to which whole lines are only ever added, each on the disk before anything is done that it tells of."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fedsam_pipeline.files import atomic_path

log = logging.getLogger(__name__)
_BLOCK = 1 << 16


def add_durably(path: Path, stream: BinaryIO, content: bytes) -> None:
    """Adds lines; when this returns, the disk has them, and the file's name, too.

    Args:
        path: the file.
        stream: of it, open for adding.
        content: with line ends.

    Raises:
        OSError: the disk is full or does not answer. A piece of the content may stand in the file: ``set_torn_line_aside`` mends that.
    """
    new = stream.seek(0, os.SEEK_END) == 0
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())
    if new:
        _sync_folder(path.parent)


def set_torn_line_aside(path: Path, stream: BinaryIO) -> None:
    """Moves a last line without its end, as a power cut leaves it, to a file of its own: ``NAME_torn_line_NUMBER_SIZE.jsonl``.

    Args:
        path: the file.
        stream: of it, open for adding and reading.

    Raises:
        FedsamError: there is no room for that file. The line stays where it is.
        OSError: the disk does not answer.
    """
    size = stream.seek(0, os.SEEK_END)
    torn = next(pieces_backwards(stream, size), b"")
    if not torn:
        return
    stream.seek(0)
    number = 1 + sum(block.count(b"\n") for block in iter(lambda: stream.read(_BLOCK), b""))
    aside = path.with_name(f"{path.stem}_torn_line_{number}_{size}.jsonl")
    with atomic_path(aside) as temporary, open(temporary, "wb") as piece:
        piece.write(torn)
        piece.flush()
        os.fsync(piece.fileno())
    _sync_folder(path.parent)  # the piece is on the disk before it is gone from the file
    stream.truncate(size - len(torn))
    os.fsync(stream.fileno())
    log.warning("%s: line %d was cut short, by a power cut or a kill; its %d bytes are in %s", path, number, len(torn), aside.name)


def pieces_backwards(stream: BinaryIO, end: int) -> Iterator[bytes]:
    """What stands between line ends before position ``end``, the last piece first."""
    rest = b""
    while end > 0:
        step = min(end, _BLOCK)
        end -= step
        stream.seek(end)
        rest, *whole = (stream.read(step) + rest).split(b"\n")
        yield from reversed(whole)
    if rest:
        yield rest


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
