"""What the integrity checks found: one typed entry a fault, and the report that holds them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fedsam_pipeline.errors import FedsamError

SHOWN_FINDINGS = 5
"""how many findings an error prints; the report holds all"""


class Severity(StrEnum):
    """An error stops planning; a warning is for a person to judge."""

    ERROR = "error"
    WARNING = "warning"


class Check(StrEnum):
    """One check each; the values are the words of ``integrity.json``."""

    READABLE = "files readable"
    SCALAR_3D = "3D scalar images"
    STRAIGHT = "axes at right angles"
    FINITE = "finite voxels"
    CHANNEL_GRID = "channels on one grid"
    MASK_GRID = "mask on the image's grid"
    WHOLE_VALUES = "whole label values"
    KNOWN_VALUES = "known label values"
    PATIENTS = "no patient in both imagesTr and imagesTs"
    ONE_FRAME = "no fourth axis"
    MASK_TYPE = "masks stored as whole numbers"
    MASK_EMPTY = "masks not empty"
    CONSTANT = "images not constant"
    DUPLICATE = "no image twice"
    CLASSES = "every class in some mask of each site that annotated it"


CHEAP_CHECKS = (
    Check.READABLE,
    Check.SCALAR_3D,
    Check.STRAIGHT,
    Check.FINITE,
    Check.CHANNEL_GRID,
    Check.MASK_GRID,
    Check.WHOLE_VALUES,
    Check.KNOWN_VALUES,
    Check.PATIENTS,
)
"""made on every labelled case while it is measured; the others need ``--verify_dataset_integrity``, which also looks at ``imagesTs``"""
ALL_CHECKS = tuple(Check)


@dataclass(frozen=True)
class Finding:
    """One fault.

    Args:
        severity: whether it stops planning.
        check: the check that found it; ``None`` where our own code failed.
        case: ``None`` where it concerns a class or the dataset.
        site: the owner of the case; ``None`` where it concerns several.
        what: one sentence, what is wrong.
        path: the file.
        found: what stands there, as text.
        expected: what should stand there, as text.
        fix: the edit or command that mends it.
        fixable: whether ``--fix`` mends it in a copy.
    """

    severity: Severity
    check: Check | None
    case: str | None
    site: str | None
    what: str
    path: str | None = None
    found: str | None = None
    expected: str | None = None
    fix: str | None = None
    fixable: bool = False

    @classmethod
    def of(
        cls,
        error: FedsamError,
        check: Check,
        case: str | None,
        site: str | None,
        *,
        severity: Severity = Severity.ERROR,
        fixable: bool = False,
    ) -> "Finding":
        """The finding that says what ``error`` says."""
        found, expected = (None if value is None else str(value) for value in (error.found, error.expected))
        return cls(severity, check, case, site, error.what, error.path, found, expected, error.fix, fixable)

    def error(self) -> FedsamError:
        """The same as an error to raise."""
        return FedsamError(self.what, path=self.path, found=self.found, expected=self.expected, fix=self.fix)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields."""
        return dict(vars(self))

    def text(self) -> str:
        """Several lines for a person: severity, case, site, then what an error says, ``--fix`` where it mends this."""
        owner = f" [{' at '.join(part for part in (self.case, self.site) if part)}]" if self.case or self.site else ""
        note = "\n  --fix     mends this in a copy" if self.fixable else ""
        return f"{self.severity}{owner} {self.error()}{note}"


class FindingsError(FedsamError):
    """Raised for one case (or dataset) with errors: a single one speaks for itself, several are listed.

    Args:
        findings: at least one, errors only.
        where: the case or dataset, for the message.
        report: the file that holds all of them, if there is one.
        number: of the dataset, so that the message can say what ``--fix`` mends; ``None`` where that is not to be said.
    """

    def __init__(self, findings: Sequence[Finding], where: str, report: str | None = None, number: int | None = None) -> None:
        self.findings = tuple(findings)
        self._where, self._report, self._number = where, report, number
        if len(self.findings) == 1:
            (only,) = self.findings
            super().__init__(
                only.what, path=only.path, found=only.found, expected=only.expected, fix=with_mending(only.fix, self.findings, number)
            )
            return
        shown = [str(finding.error()) for finding in self.findings[:SHOWN_FINDINGS]]
        if len(self.findings) > SHOWN_FINDINGS:
            shown.append("..." if report is None else f"... all of them: {report}")
        listed = "\n".join(f"    {line}" for entry in shown for line in entry.splitlines())
        fix = with_mending("mend each as it says, or leave the case out", self.findings, number)
        super().__init__(f"{where} has {len(self.findings)} faults", found=f"\n{listed}", fix=fix)

    def __reduce__(self) -> tuple[object, ...]:
        return FindingsError, (self.findings, self._where, self._report, self._number)


def with_mending(fix: str | None, findings: Sequence[Finding], number: int | None) -> str | None:
    """``fix``, and what ``--fix`` mends of the findings of dataset ``number``; ``fix`` alone where that is nothing or not to be said."""
    fixable = sum(finding.fixable for finding in findings)
    if not fixable or number is None:
        return fix
    share = "this" if len(findings) == 1 else f"{fixable} of these {len(findings)} faults"
    return f"{fix or 'mend the file'}; or: fedsam_plan_and_preprocess -d {number} --fix mends {share} in a copy of the dataset"


@dataclass(frozen=True)
class Report:
    """``integrity.json``: see docs/formats.md.

    Args:
        dataset: its name.
        num_cases: labelled cases.
        num_test_cases: cases of ``imagesTs`` that were looked at.
        checks: the checks that were made.
        findings: errors first, then by case.
    """

    dataset: str
    num_cases: int
    num_test_cases: int
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop planning."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that do not."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNING)

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "schema_version": 1,
            "dataset": self.dataset,
            "num_cases": self.num_cases,
            "num_test_cases": self.num_test_cases,
            "checks": list(self.checks),
            "num_errors": len(self.errors),
            "num_warnings": len(self.warnings),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def text(self, limit: int | None = None) -> str:
        """The same for a person, every finding (at most ``limit``) with its fix."""
        cases = f"{self.num_cases} labelled and {self.num_test_cases} test cases" if self.num_test_cases else f"{self.num_cases} cases"
        head = f"integrity of {self.dataset}: {cases}, {len(self.checks)} checks, {len(self.errors)} errors, {len(self.warnings)} warnings"
        rest = 0 if limit is None else max(0, len(self.findings) - limit)
        more = [f"... and {rest} more, in integrity.json"] if rest else []
        return "\n\n".join([head, *(finding.text() for finding in self.findings[:limit]), *more])


def sorted_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by case; findings of one case keep their order."""
    return tuple(sorted(findings, key=lambda finding: (finding.severity is not Severity.ERROR, finding.case or "")))
