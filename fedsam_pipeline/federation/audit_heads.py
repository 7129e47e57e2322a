"""What the server knows of its sites' audit trails: the head that came with each reply. A head pins all lines before it."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_chain import START, AuditLine, ChainFault, Head
from fedsam_pipeline.federation.line_file import add_durably, set_torn_line_aside
from fedsam_pipeline.files import make_folder
from fedsam_pipeline.specs.canonical import canonical_json
from fedsam_pipeline.specs.document import Document

log = logging.getLogger(__name__)
HEADS_FILE = "audit_heads.jsonl"
_FIX = "put the last good copy back; without it, sites cannot be held to what they said before"


class TrailBroken(ValueError):
    """A head does not continue the ones that came before it: lines were taken away, or written anew."""


class HeadPoint(Document):
    """What came with one reply: a line of the file."""

    site: str
    trail: int = Field(ge=1)
    """from 1; a site that has lost its disk begins another"""
    length: int = Field(ge=1)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    previous: str = Field(pattern=r"^\d{10}:[0-9a-f]{64}$")
    """head of the trail with the site's last reply before this one, as the site says"""
    message: str
    """type of the message that was answered"""
    payload_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """of the reply as the server received it; the line must say the same"""
    refused: bool
    """the trail did not continue what the server knew"""

    @property
    def head(self) -> Head:
        """Of the trail, then."""
        return Head(self.length, self.hash)


@dataclass(frozen=True)
class _Known:
    """What a site's next head is held to.

    Attributes:
        head: the last one that was taken.
        trail: its number.
        broken: a later one was refused: lengths alone say nothing any more.
    """

    head: Head = START
    trail: int = 1
    broken: bool = False

    def after(self, point: HeadPoint) -> "_Known":
        return replace(self, broken=True) if point.refused else _Known(point.head, point.trail)


class AuditHeads:
    """The heads of a run's sites, kept on disk. One process writes them.

    What came with replies is held to at once, and written down by ``keep``: when it is sure that no two nodes speak for one site.

    Args:
        folder: the run's.
        speakers: node to the site that it was registered as; may grow. ``None``: nobody knows beforehand, as in simulation.

    Raises:
        FedsamError: its file is broken.
    """

    def __init__(self, folder: Path, speakers: Mapping[int, str] | None = None) -> None:
        self._path, self._speakers = folder / HEADS_FILE, speakers
        self._kept: dict[str, _Known] = {}
        self._seen: defaultdict[str, set[Head]] = defaultdict(set)
        for point in _read(self._path, _FIX) if self._path.exists() else ():
            self._kept[point.site] = self._kept.get(point.site, _Known()).after(point)
            self._seen[point.site].add(point.head)
        self._now = dict(self._kept)
        self._new: list[HeadPoint] = []
        self._nodes: dict[str, int] = {}

    @property
    def registered(self) -> bool:
        """Whether it is known beforehand which node is which site."""
        return self._speakers is not None

    def site_of(self, node: int) -> str | None:
        """As which site a node was registered, or else has spoken; ``None`` where that is not known."""
        if self._speakers is not None:
            return self._speakers.get(node)
        return next((site for site, other in self._nodes.items() if other == node), None)

    def claim(self, site: str, node: int) -> bool:
        """Whether this node may speak for a site: the one that was registered as this site, else the first that does is the only one, and
        speaks for no other.

        A second one makes void what came in the site's name since the last ``keep``, because nobody knows whose it was.

        Args:
            site: the name in a reply.
            node: Flower's number of who sent it.
        """
        if self._speakers is not None:
            return self._speakers.get(node) == site
        if node in self._nodes.values():
            return self._nodes.get(site) == node
        if site not in self._nodes:
            self._nodes[site] = node
            return True
        self._new = [point for point in self._new if point.site != site]
        self._now[site] = self._kept.get(site, _Known())
        return False

    def take(self, site: str, head: Head, previous: Head, *, message: str, payload_sha256: str) -> None:
        """Holds the head that came with a reply to what is known.

        A trail without any reply before this one is new. The log and the file say so, and it is taken, because a site whose disk was lost
        has to be able to come back. One that contradicts what it said before is not, nor is what follows it, until it continues the last
        head that was taken, or begins anew.

        Args:
            site: who answers.
            head: of its trail, with the line of this reply.
            previous: of its trail with its last reply before this one.
            message: type of the message that was answered.
            payload_sha256: of the reply as it came.

        Raises:
            TrailBroken: the trail was shortened or written anew, or this reply has come before.
        """
        known = self._now.get(site, _Known())
        if head.length <= previous.length or head in self._seen[site]:
            raise TrailBroken(f"its audit trail does not grow: line {head.length} again, or after line {previous.length}")
        anew = known.head != START and previous == START
        refused = not anew and previous != known.head and (previous.length <= known.head.length or known.broken)
        point = HeadPoint(
            site=site,
            trail=known.trail + anew,
            length=head.length,
            hash=head.hash,
            previous=str(previous),
            message=message,
            payload_sha256=payload_sha256,
            refused=refused,
        )
        self._seen[site].add(head)
        self._new.append(point)
        self._now[site] = known.after(point)
        last = known.head
        if refused:
            raise TrailBroken(
                "its audit trail was shortened or written anew: it says that its last reply was line "
                f"{previous.length} ({previous.hash:.16}), the server has line {last.length} ({last.hash:.16})"
            )
        if anew:
            log.warning("the audit trail of %s begins anew: the server last knew line %d (%s)", site, last.length, last.hash)
        elif last not in (START, previous):
            told = "%s says that it replied between lines %d and %d of its audit trail; the server has no such reply"
            log.warning(told, site, last.length, head.length)

    def keep(self) -> None:
        """Writes down what was taken and refused since the last time; when this returns, the disk has it.

        Raises:
            FedsamError: the file cannot be written.
        """
        if not self._new:
            return
        make_folder(self._path.parent)
        content = "".join(f"{canonical_json(point.to_dict())}\n" for point in self._new).encode()
        try:
            with open(self._path, "a+b") as stream:
                set_torn_line_aside(self._path, stream)
                add_durably(self._path, stream, content)
        except OSError as error:
            raise FedsamError(
                "what the server knows of its sites' audit trails cannot be written",
                path=self._path,
                found=str(error),
                expected="a disk with room, and a folder this user may write to",
                fix="free some room, or make the folder writable, and continue the run",
            ) from error
        self._new.clear()
        self._kept = dict(self._now)


def load_heads(path: Path) -> dict[str, tuple[HeadPoint, ...]]:
    """Site to what came with its replies, but for those whose trail was refused.

    Raises:
        FedsamError: the file is missing or broken.
    """
    found: defaultdict[str, list[HeadPoint]] = defaultdict(list)
    for point in _read(path, f"name the {HEADS_FILE} in the server's run folder"):
        if not point.refused:
            found[point.site].append(point)
    return {site: tuple(points) for site, points in found.items()}


def _read(path: Path, fix: str) -> Iterator[HeadPoint]:
    """A last line without its end is left out: nothing was done yet that it tells of."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise FedsamError("the heads of audit trails cannot be read", path=path, found=str(error), expected=HEADS_FILE, fix=fix) from error
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise FedsamError(
                "a line of the heads of audit trails is no JSON", path=path, found=f"line {number}: {error!s:.80}", fix=fix
            ) from error
        yield HeadPoint.from_dict(value, path=f"{path}, line {number}", fix=fix)


def fault_against(points: Sequence[HeadPoint], lines: Sequence[AuditLine]) -> tuple[ChainFault | None, int]:
    """Which of a site's trails an intact file is, and the first line that is not what the server knows of it.

    Args:
        points: what came with the site's replies, at least one.
        lines: of the file.

    Returns:
        ``None`` and the number of the last trail that the file agrees with in all points; the fault against the last trail, where there
        is no such trail.
    """
    trails = sorted({point.trail for point in points}, reverse=True)
    faults = {trail: _first_fault([point for point in points if point.trail == trail], lines) for trail in trails}
    return next(((None, trail) for trail, fault in faults.items() if fault is None), (faults[trails[0]], trails[0]))


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
        before = (lines[index] for index in range(point.length - 2, -1, -1))
        replied = next((each.head for each in before if each.direction == "out"), START)
        if str(replied) != point.previous:
            return ChainFault(line.index, f"the last reply before it at {replied}", f"{point.previous}, which it said itself")
    return None
