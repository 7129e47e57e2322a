"""Zip files without compression: equal contents give equal bytes, and unpacking can never take more room than the file itself.

Reading trusts nothing: what a zip may hold besides plain files under plain names is refused before anything is read out of it.
"""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedsam_pipeline.errors import FedsamError

_CHUNK = 1 << 20
_LARGE = 1 << 31
_SHOWN_NAME = 80
_ENCRYPTED = 0x1
_DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    RuntimeError,  # NotImplementedError, of features that zipfile lacks, is one
)
"""what ``zipfile`` raises on bytes that are no zip, or on a damaged one"""


def write_plain_zip(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Writes a zip, stored, in the order of ``members``: dates, permissions and system are constants, so the bytes depend on nothing else.

    Args:
        path: the new file.
        members: name in the zip to content, or to the file that holds it.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with archive.open(info, "w", force_zip64=info.file_size >= _LARGE) as out:
                for chunk in [content] if isinstance(content, bytes) else _chunks_of_file(content):
                    out.write(chunk)


def _chunks_of_file(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


class PlainZip:
    """A zip whose members are all plain files, stored, under safe names that no file system confuses."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], fix: str) -> None:
        self.path, self._archive, self._infos, self._fix = path, archive, infos, fix

    @property
    def sizes(self) -> dict[str, int]:
        """Member to its size in bytes; together they are no larger than the zip."""
        return {name: info.file_size for name, info in self._infos.items()}

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a member, at most its declared size, in pieces.

        Raises:
            FedsamError: the zip is damaged there.
        """
        try:
            with self._archive.open(self._infos[name]) as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
        except _DAMAGED as error:
            raise _damaged(self.path, f"{name}: {error}", self._fix) from error

    def read(self, name: str, *, limit: int) -> bytes:
        """The content of a member that has at most ``limit`` bytes.

        Raises:
            FedsamError: it is larger, or damaged.
        """
        if self._infos[name].file_size > limit:
            raise FedsamError(
                "a member of a zip is too large",
                path=self.path,
                found=f"{name}, {self._infos[name].file_size:,} bytes",
                expected=f"at most {limit:,} bytes",
                fix=self._fix,
            )
        return b"".join(self.chunks(name))


@contextmanager
def open_plain_zip(path: Path, *, fix: str) -> Iterator[PlainZip]:
    """Opens a zip from somewhere else.

    Args:
        path: the file.
        fix: what the user should do where it is not as it should be.

    Raises:
        FedsamError: missing, no zip, damaged, or with a member that is compressed, encrypted, a folder, a link, has an unsafe name, or the
            name of another one (letter case aside), or with members that are larger together than the file.
    """
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise FedsamError("a file is missing", path=path, expected="a zip", fix="check the name") from error
    except _DAMAGED as error:
        raise _damaged(path, str(error), fix) from error
    with archive:
        infos = archive.infolist()
        faults = list(_faults(infos, path.stat().st_size))
        if faults:
            raise FedsamError(
                "a zip holds what cannot be unpacked safely",
                path=path,
                found=faults[0] if len(faults) == 1 else "\n    ".join([f"{len(faults)} faults, such as", *faults[:6]]),
                expected="plain files, not compressed, each under a relative name of its own",
                fix=fix,
            )
        yield PlainZip(path, archive, {info.filename: info for info in infos}, fix)


def _faults(infos: list[zipfile.ZipInfo], file_size: int) -> Iterator[str]:
    seen: dict[str, str] = {}
    for info in infos:
        shown = f"{info.orig_filename[:_SHOWN_NAME]!a}"
        if reason := _unsafe_name(info):
            yield f"{shown}: {reason}"
        if reason := _unsafe_kind(info):
            yield f"{shown}: {reason}"
        folded = info.filename.casefold()
        if folded in seen:
            yield f"{shown}: twice" if seen[folded] == info.filename else f"{shown}: differs from {seen[folded]!a} in letter case only"
        seen.setdefault(folded, info.filename)
    total = sum(info.file_size for info in infos)
    if total > file_size:
        yield f"members of {total:,} bytes in a file of {file_size:,}"


def _unsafe_name(info: zipfile.ZipInfo) -> str | None:
    name = info.orig_filename  # as it stands in the file; zipfile itself cuts it at a zero byte
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "a path that leads out of its folder"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*/?", name):
        return "no plain name"
    return None


def _unsafe_kind(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    if info.filename.endswith("/") or stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "no regular file"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "compressed"
    return None


def _damaged(path: Path, found: str, fix: str) -> FedsamError:
    return FedsamError("a zip cannot be read", path=path, found=found, expected="an undamaged zip", fix=fix)
