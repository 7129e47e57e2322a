"""fedsam_audit: what a site's audit trail says, and whether it is whole."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_chain import AUDIT_FILE, START, AuditLine, ChainFault, NameDigest, read_chain
from fedsam_pipeline.federation.audit_heads import HEADS_FILE, HeadPoint, fault_against, load_heads
from fedsam_pipeline.logs import printable

COLUMNS = ("line", "time (UTC)", "site", "way", "message", "round", "tensors", "bytes", "sha256", "plan", "epsilon", "note")
_SHORT = 12
"""digits of a hash in the table"""


@dataclass(frozen=True)
class CheckedTrail:
    """One trail.

    Attributes:
        path: its file.
        lines: those that follow from each other.
        fault: what is wrong with the next one, or with one of them against the server's heads.
        site: whose it is; ``None`` where it was not compared with these heads.
        trail: which of the site's trails it is, as the server counts them.
        known: what the server has of the site.
    """

    path: Path
    lines: Sequence[AuditLine]
    fault: ChainFault | None
    site: str | None = None
    trail: int = 0
    known: Sequence[HeadPoint] = ()

    def __str__(self) -> str:
        if self.fault is not None:
            said = (("line", self.fault.line), ("found", self.fault.found), ("expected", self.fault.expected))
            return "\n".join([f"{self.path}: BROKEN", *(f"  {word + ':':<10}{printable(value)}" for word, value in said)])
        head = self.lines[-1].head if self.lines else START
        told = "" if self.site is None else f", as the server has it ({_counted(self.trail, self.known)})"
        return f"{self.path}: intact, {len(self.lines)} lines{told}, head {head}"


@dataclass(frozen=True)
class MissingTrail:
    """A trail of which the server has heads, and no file agrees with them.

    Attributes:
        site: whose it is.
        trail: which of the site's trails.
        known: what the server has of the site.
    """

    site: str
    trail: int
    known: Sequence[HeadPoint]

    def __str__(self) -> str:
        return f"{printable(self.site)}: MISSING: {_counted(self.trail, self.known)}"


def _counted(trail: int, known: Sequence[HeadPoint]) -> str:
    replies = sum(point.trail == trail for point in known)
    return f"trail {trail} of {max(point.trail for point in known)}, {replies} {'reply' if replies == 1 else 'replies'}"


def find_trails(place: Path) -> list[Path]:
    """The trails at a place.

    Args:
        place: a trail's file, a site's folder, or a folder with those of several below it, such as a run's.

    Raises:
        FedsamError: there is none.
    """
    found = [place] if place.is_file() else sorted(place.rglob(AUDIT_FILE))
    if not found:
        raise FedsamError(
            "there is no audit trail here",
            path=place,
            expected=f"{AUDIT_FILE}, or a folder with one somewhere below it, such as fold_0/sites/SITE",
            fix="name the folder in which this site keeps its state",
        )
    return found


def verify_trails(places: Sequence[Path], heads: Path | None = None) -> tuple[list[CheckedTrail], list[MissingTrail]]:
    """Checks every trail at some places, line by line, and against what the server knows.

    Args:
        places: see ``find_trails``.
        heads: the server's ``audit_heads.jsonl``; ``None``: the one in the first folder that has one, if any does (in simulation the run's
            has, and every site that it knows has to be there, too).

    Returns:
        What was found; and the trails of the same sites that the server knows and no file agrees with.

    Raises:
        FedsamError: there is no trail, or the heads cannot be read or do not know a site.
    """
    found = {path: place for place in places for path in find_trails(place)}
    beside = next((place for place in places if (place / HEADS_FILE).is_file()), None)
    if heads is None and beside is None:
        return [_checked(path) for path in found], []
    if heads is not None:
        known = load_heads(heads)
        checked = [_checked(path, known) for path in found]
        return checked, _missing(checked, known)
    assert beside is not None  # or there are no heads
    known = load_heads(beside / HEADS_FILE)
    checked = [_checked(path, known, path.parent.name if place == beside else None) for path, place in found.items()]
    return checked, _missing(checked, known, known.keys())


def _checked(path: Path, known: Mapping[str, Sequence[HeadPoint]] | None = None, site: str | None = None) -> CheckedTrail:
    """``site``: whose trail it should be; ``None``: whose it says it is."""
    lines, fault = read_chain(path)
    if known is None:
        return CheckedTrail(path, lines, fault)
    site = site or (lines[0].site if lines else path.parent.name)
    if fault is not None:
        return CheckedTrail(path, lines, fault, site)
    if site not in known:
        raise FedsamError(
            "the server's heads know nothing of this site",
            path=path,
            found=printable(site),
            expected=", ".join(sorted(known)) or "none yet",
            fix=f"name the {HEADS_FILE} of the run that this trail is of",
        )
    fault, trail = fault_against(known[site], lines)
    return CheckedTrail(path, lines, fault, site, trail, known[site])


def _missing(
    checked: Sequence[CheckedTrail], known: Mapping[str, Sequence[HeadPoint]], expected: Collection[str] = ()
) -> list[MissingTrail]:
    """Of the sites that were found, and of those that have to be there. The last trail of a site with a broken file is that file."""
    missing = []
    found = {each.site for each in checked if each.site is not None}
    for site in sorted((found & known.keys()) | set(expected)):
        there = {each.trail for each in checked if each.site == site and each.fault is None}
        last = max(point.trail for point in known[site])
        if any(each.site == site and each.fault is not None for each in checked):
            there.add(last)
        missing += [MissingTrail(site, trail, known[site]) for trail in range(1, last + 1) if trail not in there]
    return missing


def read_lines(place: Path, last: int | None) -> list[AuditLine]:
    """The lines of every trail at a place, the last so many of each.

    Raises:
        FedsamError: there is no trail, or one is broken: what it says cannot be relied on.
    """
    shown: list[AuditLine] = []
    for path in find_trails(place):
        lines, fault = read_chain(path)
        if fault is not None:
            raise FedsamError(
                "an audit trail is broken: what it says cannot be relied on",
                path=path,
                found=f"line {fault.line}: {fault.found}",
                expected=fault.expected,
                fix="keep the file as it is; the lines before this one are as they were written",
            )
        shown += lines if last is None else lines[-last:]
    return shown


def trail_table(lines: Sequence[AuditLine]) -> str:
    """Lines for reading, a message each; hashes and tensors in short. What is not printable was the server's choice, and is escaped."""
    rows = [COLUMNS, *(tuple(map(printable, _row(line))) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(line: AuditLine) -> tuple[str, ...]:
    return (
        str(line.index),
        line.time.removesuffix("+00:00").replace("T", " "),
        line.site,
        line.direction,
        line.message,
        _or_dash(line.round),
        _tensors(line.tensors),
        str(line.bytes),
        line.payload_sha256[:_SHORT],
        _or_dash(line.plan_sha256)[:_SHORT],
        _or_dash(line.epsilon),
        "" if line.failure is None else f"failure {line.failure}",
    )


def _tensors(tensors: tuple[str, ...] | NameDigest | None) -> str:
    if tensors is None:
        return "unreadable"
    return str(tensors.count if isinstance(tensors, NameDigest) else len(tensors))


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
