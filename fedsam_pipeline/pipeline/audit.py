"""fedsam_audit: what a site's audit trail says, and whether it is whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_chain import AUDIT_FILE, START, AuditLine, ChainFault, NameDigest, read_chain
from fedsam_pipeline.federation.audit_heads import HEADS_FILE, HeadPoint, fault_against, load_heads

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
        points: replies whose heads the server has; ``None`` where they were not compared.
    """

    path: Path
    lines: Sequence[AuditLine]
    fault: ChainFault | None
    points: int | None = None

    def __str__(self) -> str:
        if self.fault is not None:
            said = (("line", self.fault.line), ("found", self.fault.found), ("expected", self.fault.expected))
            return "\n".join([f"{self.path}: BROKEN", *(f"  {word + ':':<10}{value}" for word, value in said)])
        head = self.lines[-1].head if self.lines else START
        told = "" if self.points is None else f", as the server has it ({self.points} replies)"
        return f"{self.path}: intact, {len(self.lines)} lines{told}, head {head}"


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


def verify_trails(place: Path, heads: Path | None = None) -> list[CheckedTrail]:
    """Checks every trail at a place, line by line, and against what the server knows.

    Args:
        place: see ``find_trails``.
        heads: the server's ``audit_heads.json``; ``None``: the one in the folder itself, if there is one (in simulation there is, and every
            site that it knows has to be there, too).

    Raises:
        FedsamError: there is no trail, or the heads cannot be read or do not know a site.
    """
    if heads is not None:
        known = load_heads(heads)
        return [_checked(path, known) for path in find_trails(place)]
    if not (place / HEADS_FILE).is_file():
        return [_checked(path, None) for path in find_trails(place)]
    known = load_heads(place / HEADS_FILE)
    found = [_checked(path, known, path.parent.name) for path in find_trails(place)]
    gone = sorted(known.keys() - {trail.path.parent.name for trail in found})
    lost = [CheckedTrail(place / "sites" / site / AUDIT_FILE, (), fault_against(known[site], ()), len(known[site])) for site in gone]
    return [*found, *lost]


def _checked(path: Path, known: Mapping[str, Sequence[HeadPoint]] | None, site: str | None = None) -> CheckedTrail:
    """``site``: whose trail it should be; ``None``: whose it says it is."""
    lines, fault = read_chain(path)
    if known is None or fault is not None:
        return CheckedTrail(path, lines, fault)
    site = site or (lines[0].site if lines else path.parent.name)
    if site not in known:
        raise FedsamError(
            "the server's heads know nothing of this site",
            path=path,
            found=site,
            expected=", ".join(sorted(known)) or "none yet",
            fix="name the audit_heads.json of the run that this trail is of",
        )
    return CheckedTrail(path, lines, fault_against(known[site], lines), len(known[site]))


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
    """Lines for reading, a message each; hashes and tensors in short."""
    rows = [COLUMNS, *(_row(line) for line in lines)]
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
