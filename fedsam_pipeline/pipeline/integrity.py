"""The integrity report of a dataset, and ``--fix``."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedsam_pipeline.dataset.dataset_checks import absent_classes, repeated_images, shared_patients
from fedsam_pipeline.dataset.findings import ALL_CHECKS, CHEAP_CHECKS, Check, Finding, FindingsError, Report, Severity, sorted_findings
from fedsam_pipeline.dataset.fix import copy_folder, write_fixed_copy
from fedsam_pipeline.dataset.integrity import case_record, owner
from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.errors import EXIT_DONE, EXIT_SOME_FAILED, FedsamError
from fedsam_pipeline.files import write_json
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.paths import dataset_id
from fedsam_pipeline.planning.fingerprint import case_failure
from fedsam_pipeline.preprocessing.budget import default_processes
from fedsam_pipeline.preprocessing.workers import CaseOutcome, CaseWorkers

COMMAND = "fedsam_plan_and_preprocess"
REPORT_FILE = "integrity.json"
PRINTED = 10
"""findings on the terminal; the file and the log hold all"""

log = logging.getLogger(__name__)


def verify_dataset(dataset: RawDataset, folder: Path, workers: CaseWorkers) -> Report:
    """Makes all checks, writes ``integrity.json`` into ``folder`` and prints warnings.

    Raises:
        FindingsError: there are errors.
        RuntimeError: a check failed by our own fault.
    """
    report = check_dataset(dataset, folder, workers)
    if report.errors:
        raise FindingsError(report.errors, dataset.name, str(folder / REPORT_FILE), dataset_id(dataset.name))
    print(report.text(PRINTED))
    return report


def check_dataset(dataset: RawDataset, folder: Path, workers: CaseWorkers) -> Report:
    """Makes all checks and writes ``integrity.json`` into ``folder``; ``RuntimeError`` where one failed by our own fault."""
    report, failed = examine_dataset(dataset, workers)
    _write(report, folder)
    if failed:
        raise case_failure(dataset.name, failed)
    return report


def examine_dataset(dataset: RawDataset, workers: CaseWorkers) -> tuple[Report, list[CaseOutcome[Any]]]:
    """Makes all checks and writes nothing.

    Returns:
        The report, and the cases on which a check failed by our own fault; the report names these too.
    """
    outcomes = list(workers.work(partial(case_record, dataset), dataset.cases, "verify"))
    tests = list(workers.work(partial(case_record, dataset, test=True), dataset.test_cases, "verify imagesTs"))
    records = [outcome.result for outcome in (*outcomes, *tests) if outcome.result is not None]
    findings = [finding for record in records for finding in record.findings]
    findings += [*shared_patients(dataset), *repeated_images(dataset, records), *absent_classes(dataset, records)]
    for test, some in ((False, outcomes), (True, tests)):
        findings += [_finding_of(outcome, owner(dataset, outcome.case, test=test)) for outcome in some if outcome.error is not None]
    report = Report(dataset.name, len(dataset.cases), len(dataset.test_cases), ALL_CHECKS, sorted_findings(findings))
    return report, [outcome for outcome in (*outcomes, *tests) if outcome.error is not None]


def write_cheap_report(dataset: RawDataset, folder: Path, failed: Sequence[CaseOutcome[Any]], before: Report | None) -> None:
    """Writes ``integrity.json`` after the cases were measured, which makes the cheap checks.

    Args:
        dataset: the dataset.
        folder: its preprocessed folder.
        failed: outcomes with an error.
        before: the full report of the same run, whose findings stay.
    """
    findings = [*(before.findings if before else shared_patients(dataset))]
    for outcome in failed:
        if isinstance(outcome.error, FindingsError):
            findings += outcome.error.findings
        else:
            findings.append(_finding_of(outcome, dataset.site_of(outcome.case)))
    report = Report(
        dataset.name,
        len(dataset.cases),
        before.num_test_cases if before else 0,
        before.checks if before else CHEAP_CHECKS,
        sorted_findings(findings),
    )
    _write(report, folder)


def fix_into_copy(raw: Path, preprocessed_root: Path, *, number: int | None = None, num_processes: int | None = None) -> int:
    """Verifies a dataset, writes a copy with the safe fixes and verifies that.

    Args:
        raw: the raw dataset's folder; it is not touched.
        preprocessed_root: the reports of both datasets go there.
        number: of the copy, see ``copy_folder``.
        num_processes: ``None`` for as many as fit and pay off.

    Returns:
        Exit code: 0, or 1 where errors are left that need a person.

    Raises:
        FedsamError: the dataset cannot be read, has errors and nothing to fix, or the copy cannot be written.
    """
    dataset = load_raw_dataset(raw)
    target = copy_folder(dataset, number)
    folder = preprocessed_root / dataset.name
    with log_file(folder / "logs", COMMAND), CaseWorkers(num_processes or default_processes(dataset)) as workers:
        report = check_dataset(dataset, folder, workers)
        if not any(finding.fixable for finding in report.findings):
            if report.errors:
                raise FindingsError(report.errors, f"{dataset.name}, with nothing that --fix could mend,", str(folder / REPORT_FILE))
            print(f"{report.text(PRINTED)}\nnothing to fix, no copy written")
            return EXIT_DONE
        mended = write_fixed_copy(dataset, target, report.findings, progress=True)
        lines = [f"{entry.case}: {entry.path}: {'; '.join(entry.fixes)}" for entry in mended]
        log.debug("%s", "\n".join(lines))
        print("\n".join(lines[:PRINTED] + (["..."] if len(lines) > PRINTED else [])))
        print(f"{len(mended)} files fixed, listed in {target / 'fixes.json'}")
        left = check_dataset(load_raw_dataset(target), preprocessed_root / target.name, workers)
    print(f"\nthe copy: {target}\n{left.text(PRINTED)}")
    if left.errors:
        print(f"\nleft for a person: {len(left.errors)} errors, all of them in {preprocessed_root / target.name / REPORT_FILE}")
        return EXIT_SOME_FAILED
    print(f"next: {COMMAND} -d {dataset_id(target.name)}")
    return EXIT_DONE


def _write(report: Report, folder: Path) -> None:
    """As JSON; as text it goes to the log, and what matters of it to the terminal: a second file could only disagree with the first."""
    write_json(folder / REPORT_FILE, report.to_dict())
    log.debug("%s", report.text())


def _finding_of(outcome: CaseOutcome[Any], site: str) -> Finding:
    """What stopped a case other than its own faults."""
    if isinstance(outcome.error, FedsamError):
        return Finding.of(outcome.error, Check.READABLE, outcome.case, site)
    return Finding(Severity.ERROR, None, outcome.case, site, f"internal error: {outcome.error!r}")
