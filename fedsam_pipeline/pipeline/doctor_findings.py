"""What ``fedsam_doctor`` found, one entry a check."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedsam_pipeline.errors import FedsamError


class Level(StrEnum):
    """A problem stops the federation here; a warning will, or may; what was not checked is said so."""

    OK = "ok"
    UNCHECKED = "not checked"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class DoctorFinding:
    """The outcome of one check.

    Args:
        level: see ``Level``.
        subject: what was looked at, one or two words.
        text: what was found, or why nothing could be.
        fix: the command or edit that mends it; warnings and problems have one.
    """

    level: Level
    subject: str
    text: str
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"level": str(self.level), "subject": self.subject, "text": self.text, "fix": self.fix}


def ok(subject: str, text: str) -> DoctorFinding:
    """A check that passed."""
    return DoctorFinding(Level.OK, subject, text)


def unchecked(subject: str, reason: str) -> DoctorFinding:
    """A check that could not be made, or does not apply here."""
    return DoctorFinding(Level.UNCHECKED, subject, reason)


def warning(subject: str, text: str, fix: str) -> DoctorFinding:
    """Works now, but."""
    return DoctorFinding(Level.WARNING, subject, text, fix)


def problem(subject: str, text: str, fix: str) -> DoctorFinding:
    """Does not work."""
    return DoctorFinding(Level.PROBLEM, subject, text, fix)


def from_error(subject: str, error: FedsamError, *, fix: str | None = None, level: Level = Level.PROBLEM) -> DoctorFinding:
    """What an error says, on one line."""
    where = "" if error.path is None else f" ({Path(error.path).name})"
    found = "" if error.found is None else f": {' '.join(str(error.found).split())}"
    return DoctorFinding(level, subject, f"{error.what}{where}{found}", fix or error.fix or "see the message")
