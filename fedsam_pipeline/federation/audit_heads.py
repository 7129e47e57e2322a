"""What the server knows of its sites' audit trails: the head that came with each reply. A head pins all lines before it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedsam_pipeline.federation.audit_chain import START, AuditLine, ChainFault, Head
from fedsam_pipeline.specs.document import Document

log = logging.getLogger(__name__)
HEADS_FILE = "audit_heads.json"
_FIX = "put the last good copy back; without it, sites cannot be held to what they said before"


class TrailBroken(ValueError):
    """A head does not continue the ones that came before it: lines were taken away, or written anew."""


class HeadPoint(Document):
    """What came with one reply."""

    trail: int = Field(ge=1)
    """from 1; a site that has lost its disk begins another"""
    length: int = Field(ge=1)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    message: str
    """type of the message that was answered"""
    payload_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """of the reply as the server received it; the line must say the same"""

    @property
    def head(self) -> Head:
        """Of the trail, then."""
        return Head(self.length, self.hash)


class HeadRecord(Document):
    """``audit_heads.json``."""

    schema_version: Literal[1] = 1
    sites: dict[str, tuple[HeadPoint, ...]]


class AuditHeads:
    """The heads of a run's sites, kept on disk.

    Args:
        folder: the run's.

    Raises:
        FedsamError: its file is broken.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / HEADS_FILE
        self._sites = dict(HeadRecord.load(self._path, fix=_FIX).sites) if self._path.exists() else {}

    def take(self, site: str, head: Head, previous: Head, *, message: str, payload_sha256: str) -> None:
        """Takes note of the head that came with a reply.

        A trail without any reply before this one is new. The log and the file say so, and it is taken, because a site whose disk was lost
        has to be able to come back. One that contradicts what it said before is not.

        Args:
            site: who answers.
            head: of its trail, with the line of this reply.
            previous: of its trail with its last reply before this one.
            message: type of the message that was answered.
            payload_sha256: of the reply as it came.

        Raises:
            TrailBroken: the trail was shortened or written anew, or this reply has come before.
        """
        points = self._sites.get(site, ())
        known, trail = (points[-1].head, points[-1].trail) if points else (START, 1)
        if head.length <= previous.length or head in {point.head for point in points}:
            raise TrailBroken(f"its audit trail does not grow: line {head.length} again, or after line {previous.length}")
        if known != START and previous == START:
            trail += 1
            log.warning("the audit trail of %s begins anew: the server last knew line %d (%s)", site, known.length, known.hash)
        elif previous != known and previous.length <= known.length:
            raise TrailBroken(
                "its audit trail was shortened or written anew: it says that its last reply was line "
                f"{previous.length} ({previous.hash:.16}), the server has line {known.length} ({known.hash:.16})"
            )
        elif previous != known and known != START:
            log.info("%s answered between lines %d and %d of its audit trail, which did not arrive", site, known.length, head.length)
        point = HeadPoint(trail=trail, length=head.length, hash=head.hash, message=message, payload_sha256=payload_sha256)
        self._sites[site] = (*points, point)
        HeadRecord(sites=self._sites).save(self._path)


def load_heads(path: Path) -> dict[str, tuple[HeadPoint, ...]]:
    """Site to what came with its replies.

    Raises:
        FedsamError: the file is missing or broken.
    """
    return HeadRecord.load(path, fix="name the audit_heads.json in the server's run folder").sites


def fault_against(points: Sequence[HeadPoint], lines: Sequence[AuditLine]) -> ChainFault | None:
    """The first line of an intact trail that is not what the server knows of it; ``None`` where all are.

    Args:
        points: what came with the site's replies. Of several trails the last is meant, but for an earlier one that was kept.
        lines: of the trail.
    """
    faults = [
        _first_fault([point for point in points if point.trail == trail], lines) for trail in sorted({point.trail for point in points})
    ]
    return None if None in faults or not faults else faults[-1]


def _first_fault(points: Sequence[HeadPoint], lines: Sequence[AuditLine]) -> ChainFault | None:
    for point in points:
        if point.length > len(lines):
            return ChainFault(point.length, f"the end after {len(lines)} lines", f"hash {point.hash}, which the server has")
        line = lines[point.length - 1]
        if line.hash != point.hash:
            return ChainFault(line.index, f"hash {line.hash}", f"{point.hash}, which the server has")
        if (line.direction, line.payload_sha256) != ("out", point.payload_sha256):
            return ChainFault(
                line.index, f"{line.direction} {line.payload_sha256}", f"out {point.payload_sha256}, which the server received"
            )
    return None
