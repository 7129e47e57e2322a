"""Reading and writing small files so that nothing half-written is ever left behind."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedsam_pipeline.errors import FedsamError

_CANNOT_WRITE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
}

_MOST_LEVELS = 100
"""of lists and objects within each other, in JSON from outside; ours have ten"""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renamed onto it on success, deleted on any failure.

    The temporary name keeps the suffixes, because writers choose a format by them.

    Raises:
        FedsamError: the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    make_folder(path.parent, wanted=path)
    try:
        with _clear_refusal(path, path.parent):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder; renamed to ``path`` on success, deleted on any failure with the parents made for it.

    The temporary folder lies one level deeper than ``path``, so that no search for finished folders finds what a kill left behind.

    Raises:
        FedsamError: ``path`` exists, or its parent cannot be written to.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise FedsamError("a folder exists already", path=path, expected="a new folder", fix="choose another with -o, or delete this one")
    missing = [parent for parent in path.parents if not parent.exists()]
    make_folder(path.parent, wanted=path)
    staging = path.parent / f".tmp-{secrets.token_hex(4)}"
    try:
        with _clear_refusal(path, path.parent):
            (staging / path.name).mkdir(parents=True)
            yield staging / path.name
            (staging / path.name).rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in missing:
            if not any(parent.iterdir()):
                parent.rmdir()
        raise
    staging.rmdir()


def make_folder(folder: Path, *, wanted: Path | None = None) -> None:
    """Makes a folder and those above it.

    Args:
        folder: the folder.
        wanted: what shall be written there, for the message.

    Raises:
        FedsamError: it cannot be made, or not be written to.
    """
    with _clear_refusal(wanted or folder, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, f"no permission to write in {folder}")


@contextmanager
def _clear_refusal(wanted: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise FedsamError(
            "cannot write a file" if wanted != folder else "cannot write into a folder",
            path=wanted,
            found=str(error),
            expected="a folder this user may write to",
            fix=f"choose another output folder, or make {folder} writable",
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_secret(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` atomically, readable by its owner alone from the first byte on."""
    with atomic_path(path) as temporary, open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` (UTF-8) to ``path`` atomically."""
    write_bytes(path, text.encode("utf-8"))


def append_text(path: Path, text: str) -> None:
    """Adds ``text`` (UTF-8) to the end of a file; ``FedsamError`` where that cannot be."""
    with _clear_refusal(path, path.parent), open(path, "a", encoding="utf-8") as stream:
        stream.write(text)


def json_text(value: Any) -> str:
    """``value`` as the indented JSON that our files hold. NaN is refused: write ``None``."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically; see ``json_text``."""
    write_text(path, json_text(value))


def parse_json(text: str) -> Any:
    """The value of a JSON text from outside.

    Raises:
        ValueError: it is none, has a number of thousands of digits, is nested deeper than anything of ours, or holds half of a surrogate
            pair, which JSON can write (as ``ud800`` behind a backslash) and no file, hash or message can hold.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested without end") from error
    if not _nested_within(value, _MOST_LEVELS):
        raise ValueError(f"nested more than {_MOST_LEVELS} levels deep")
    if "\\ud" in text.casefold():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _nested_within(value: Any, levels: int) -> bool:
    """Near the interpreter's limit a value could be read, and not be shown in an error."""
    inner = [value]
    for _ in range(levels + 1):
        inner = [part for each in inner if isinstance(each, dict | list) for part in (each.values() if isinstance(each, dict) else each)]
        if not inner:
            return True
    return False


def read_json(path: Path, fix: str | None = None) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        fix: what the user should do when it is missing or broken.

    Raises:
        FedsamError: missing, unreadable, or not JSON.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FedsamError("a file is missing", path=path, expected="a JSON file", fix=fix) from error
    except (OSError, ValueError) as error:
        raise FedsamError("a file cannot be read as JSON", path=path, found=str(error), expected="valid JSON", fix=fix) from error


def read_toml(path: Path, *, what: str, fix: str) -> dict[str, Any]:
    """Reads a TOML file of the user's.

    Args:
        path: the file.
        what: it is, for the error: ``a recipe file``.
        fix: what the user should do when it cannot be read.

    Raises:
        FedsamError: missing, unreadable, or not TOML; that is also a whole number of more than 64 bits (TOML 1.0, "Integer").
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        _refuse_large_integers(values)
        return values
    except (OSError, UnicodeDecodeError) as error:
        raise FedsamError(f"{what} cannot be read", path=path, found=str(error), fix=fix) from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is one; numbers of thousands of digits; nested without end
        raise FedsamError(f"{what} is not TOML", path=path, found=str(error), fix="mend the file") from error


def _refuse_large_integers(value: Any) -> None:
    """Python's own has no limit, but what is done with such a number later has one."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _refuse_large_integers(inner)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a whole number of more than 64 bits")


@contextmanager
def locked_folder(folder: Path, busy: str | None = None, *, fix: str = "wait for it, and repeat the command") -> Iterator[None]:
    """Keeps other processes out of a folder that is there; the lock ends with this process, however it ends.

    Args:
        folder: holds the lock, an empty file ``.lock``.
        busy: what is wrong when another process holds it; ``None`` waits for that process.
        fix: what the user should do then.

    Raises:
        FedsamError: another process holds the lock, the folder cannot be written to, or its file system has no locks.
    """
    with ExitStack() as held:
        try:
            stream = held.enter_context(open(folder / ".lock", "w"))
            fcntl.flock(stream, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FedsamError(str(busy), path=folder, found=str(error), fix=fix) from error
        except OSError as error:
            raise FedsamError(
                "a folder cannot be locked",
                path=folder,
                found=str(error),
                expected="a folder that this user may write to, on a file system with locks",
                fix="work in such a folder; what is there can be copied to it",
            ) from error
        yield


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
