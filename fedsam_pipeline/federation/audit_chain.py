"""A site's audit trail: a file to which every message in and out adds a line that holds the hash of the line before.

Logs chained by hashes: Schneier and Kelsey, Secure audit logs to support computer forensics (ACM TISSEC 1999), here without their keys.
What binds a site is that its server knows the hash of the last line (``audit_heads.py``).
"""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal, Self

from pydantic import Field, ValidationError

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.line_file import add_durably, pieces_backwards, set_torn_line_aside
from fedsam_pipeline.files import locked_folder, make_folder
from fedsam_pipeline.specs.canonical import canonical_json, sha256_of
from fedsam_pipeline.specs.document import Document

AUDIT_FILE = "audit.jsonl"
MAX_NAMES, MAX_NAME = 1000, 200
"""more tensors, or longer names, or half a line of them, stand in a line as their number and a hash: another machine chose these names"""
MAX_LINE = 1 << 20
"""bytes; no line that is written here is longer"""
NO_HASH = "0" * 64
_SHA256 = r"^[0-9a-f]{64}$"
_NEW_TRAIL = "move the file to another name and keep it; the next message begins a new trail, and the server takes note that it did"


class NameDigest(Document):
    """A list of names that is too long for a line."""

    count: int = Field(ge=0)
    names_sha256: str = Field(pattern=_SHA256)
    """of the canonical JSON of the sorted list"""


class AuditEntry(Document):
    """What the trail says of one message."""

    site: str
    direction: Literal["in", "out"]
    message: str
    """type of the message, or of the one that is answered"""
    run_id: str | None
    round: int | None
    attempt: int | None
    plan_sha256: str | None
    """these four as the incoming message has them; ``None`` where it has none"""
    tensors: tuple[str, ...] | NameDigest | None
    """sorted; ``None``: the payload cannot be read"""
    bytes: int = Field(ge=0)
    """of the content as Flower serialises it"""
    payload_sha256: str = Field(pattern=_SHA256)
    """of the same bytes, but for the keys of the trail itself"""
    failure: str | None
    """the code that is all that leaves"""
    epsilon: float | None
    """differential privacy spent up to this message; ``None``: there is none"""


class AuditLine(AuditEntry):
    """One line of the file."""

    index: int = Field(ge=1)
    """from 1"""
    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")
    previous: str = Field(pattern=_SHA256)
    """hash of the line before; zeros in the first"""
    hash: str = Field(pattern=_SHA256)
    """SHA-256 of the canonical JSON of all other keys"""

    @classmethod
    def after(cls, head: "Head", entry: AuditEntry) -> Self:
        """The line that follows."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        values = entry.to_dict() | {"index": head.length + 1, "time": time, "previous": head.hash}
        return cls.model_validate(values | {"hash": sha256_of(values)})

    @property
    def head(self) -> "Head":
        """Of a chain that ends here."""
        return Head(self.index, self.hash)


@dataclass(frozen=True)
class Head:
    """What pins a chain down to its last byte: the number of its lines, and the hash of the last.

    ``str`` gives 75 characters, whatever the length, so that a message has the same size whatever happened before.
    """

    length: int
    hash: str

    def __str__(self) -> str:
        return f"{self.length:010d}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of ``str``'s form.

        Raises:
            ValueError: it is none.
        """
        length, _, digest = text.partition(":")
        if len(text) != 75 or not (length.isascii() and length.isdecimal() and len(length) == 10) or set(digest) - set("0123456789abcdef"):
            raise ValueError("no head of an audit trail")
        return cls(int(length), digest)


START = Head(0, NO_HASH)
"""of a chain without lines"""


@dataclass(frozen=True)
class ChainFault:
    """Where a trail breaks.

    Attributes:
        line: from 1.
        found, expected: in words.
    """

    line: int
    found: str
    expected: str

    def __str__(self) -> str:
        return f"line {self.line}: found {self.found}, expected {self.expected}"


class LineBroken(ValueError):
    """Bytes that are no line of a trail.

    Attributes:
        expected: what should stand there.
    """

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found)
        self.expected = expected


def written(line: AuditLine) -> bytes:
    """A line as it stands in the file, with its line end."""
    return canonical_json(line.to_dict()).encode() + b"\n"


def listed(names: list[str]) -> tuple[str, ...] | NameDigest:
    """Names as a line holds them."""
    ordered = sorted(names)
    if len(ordered) > MAX_NAMES or any(len(name) > MAX_NAME for name in ordered) or _bytes_of(ordered) > MAX_LINE // 2:
        return NameDigest(count=len(ordered), names_sha256=sha256_of(ordered))
    return tuple(ordered)


def _bytes_of(names: list[str]) -> int:
    """In a line: a control character takes six."""
    return len(canonical_json(names).encode())


def parsed_line(raw: bytes) -> AuditLine:
    """A line by itself, its line end left out: its form and its own hash.

    Raises:
        LineBroken: a byte of it was changed, or it is something else.
    """
    try:
        line = AuditLine.model_validate(json.loads(raw.decode()))
    except ValidationError as error:
        faults = ", ".join(sorted({".".join(map(str, each["loc"])) or "(line)" for each in error.errors()}))
        raise LineBroken(f"keys that are missing or wrong: {faults:.200}", "a line of an audit trail") from error
    except (ValueError, RecursionError) as error:
        raise LineBroken(f"no JSON ({error!s:.80})", "a line of an audit trail") from error
    own = sha256_of({key: value for key, value in line.to_dict().items() if key != "hash"})
    if line.hash != own:
        raise LineBroken(f"hash {line.hash}", f"{own}, the hash of what stands there: the line was edited")
    if written(line) != raw + b"\n":
        raise LineBroken("other spelling of the same values", "canonical JSON: the line was edited")
    return line


def read_chain(path: Path) -> tuple[list[AuditLine], ChainFault | None]:
    """The lines of a trail up to the first that does not follow from the ones before it, and what is wrong with that one.

    Raises:
        FedsamError: there is no such file, or it cannot be read.
    """
    lines: list[AuditLine] = []
    try:
        with open(path, "rb") as stream:
            while raw := stream.readline(MAX_LINE + 1):
                fault = _fault(raw, lines)
                if fault is not None:
                    return lines, fault
    except OSError as error:
        raise FedsamError("an audit trail cannot be read", path=path, found=str(error), expected=AUDIT_FILE) from error
    return lines, None


def _fault(raw: bytes, lines: list[AuditLine]) -> ChainFault | None:
    """What is wrong with the next line; it joins the others where nothing is."""
    number, head = len(lines) + 1, lines[-1].head if lines else START
    if not raw.endswith(b"\n"):
        if len(raw) > MAX_LINE:
            return ChainFault(number, f"more than {MAX_LINE} bytes", "a line of an audit trail")
        cut = "its end: a power cut while it was written (the next message sets it aside), or an edit"
        return ChainFault(number, f"{len(raw)} bytes without a line end", cut)
    try:
        line = parsed_line(raw[:-1])
    except LineBroken as error:
        return ChainFault(number, str(error), error.expected)
    if line.index != number:
        return ChainFault(number, f"index {line.index}", f"{number}: lines are missing, or not in order")
    if line.previous != head.hash:
        return ChainFault(number, f"previous {line.previous}", f"{head.hash}, the hash of the line before")
    lines.append(line)
    return None


class AuditChain:
    """The trail of one site in one folder. Several processes may add to it.

    Args:
        folder: the site's; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / AUDIT_FILE

    def append(self, entry: AuditEntry) -> tuple[Head, Head]:
        """Adds a line; when this returns, the disk has it.

        A last line without its end is one that a power cut left; its message never left either. It is set aside, and the chain goes on
        after the line before it.

        Returns:
            The head of the chain with this line, and the head with the last reply (``out``) before it; ``START`` without any.

        Raises:
            FedsamError: the file cannot be written, its last line was edited, or this one is longer than ``MAX_LINE``.
        """
        make_folder(self._folder)
        try:
            with locked_folder(self._folder), open(self._path, "a+b") as stream:
                set_torn_line_aside(self._path, stream)
                last, replied = self._ends(stream)
                line = AuditLine.after(last, entry)
                add_durably(self._path, stream, self._short(written(line)))
        except OSError as error:
            raise FedsamError(
                "the audit trail cannot be written, so nothing may leave this site",
                path=self._path,
                found=str(error),
                expected="a disk with room, and a folder this user may write to",
                fix="free some room, or make the folder writable",
            ) from error
        return line.head, replied

    def _short(self, raw: bytes) -> bytes:
        """The same line; one that no reader takes would break the trail for ever."""
        if len(raw) > MAX_LINE:
            raise FedsamError(
                "a message cannot be noted in the audit trail, so it is not acted upon",
                path=self._path,
                found=f"a line of {len(raw)} bytes",
                expected=f"at most {MAX_LINE}",
                fix="ask whoever runs the server what it sent",
            )
        return raw

    def _ends(self, stream: BinaryIO) -> tuple[Head, Head]:
        """The head, and the head with the last reply, read from the end of the file; no more of it is read than that takes."""
        last: Head | None = None
        for raw in pieces_backwards(stream, stream.seek(0, os.SEEK_END) - 1):
            try:
                line = parsed_line(raw)
            except LineBroken as error:
                raise FedsamError(
                    "the audit trail is broken, so nothing may leave this site",
                    path=self._path,
                    found=str(error),
                    expected=error.expected,
                    fix=f"fedsam_audit verify says where; {_NEW_TRAIL}",
                ) from error
            last = last or line.head
            if line.direction == "out":
                return last, line.head
        return last or START, START
