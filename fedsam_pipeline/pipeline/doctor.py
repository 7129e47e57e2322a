"""``fedsam_doctor``: looks at everything a site or the server needs, and says what mends each fault. Writes nothing."""

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedsam_pipeline.errors import EXIT_DONE, EXIT_USER_INPUT, FedsamError
from fedsam_pipeline.flower.deployment.kit import load_kit
from fedsam_pipeline.flower.deployment.nodes import registered_keys
from fedsam_pipeline.flower.deployment.reach import greet
from fedsam_pipeline.flower.deployment.start_files import read_environment
from fedsam_pipeline.model.registry import DEFAULT_BASE_MODEL
from fedsam_pipeline.paths import data_folders
from fedsam_pipeline.pipeline.doctor_findings import DoctorFinding, Level, from_error, unchecked
from fedsam_pipeline.pipeline.doctor_kit import KitChecks
from fedsam_pipeline.pipeline.doctor_machine import (
    data_findings,
    disk_findings,
    environment_findings,
    free_disk_bytes,
    gpu_findings,
    version_findings,
    weight_findings,
)
from fedsam_pipeline.specs.site_kit import SiteKit

Record = dict[str, Any]


def examine(identifier: str | None, folder: Path | None) -> list[DoctorFinding]:
    """All checks.

    Args:
        identifier: as of ``-d``; ``None`` takes the only raw dataset, where there is one.
        folder: a kit's folder; ``None``: nothing is known of a server. With one, its environment file holds for the checks and for this
            process from now on, as it does for the services.

    Raises:
        FedsamError: ``folder`` is none of a kit.
    """
    kit = None if folder is None else load_kit(folder)
    findings: list[DoctorFinding] = []
    environment: dict[str, str] = {}
    if folder is not None:
        try:
            environment = read_environment(folder)
        except FedsamError as error:
            findings.append(from_error("kit", error, fix=f"fedsam_site_kit place {folder}"))
    os.environ.update(environment)
    findings += version_findings()
    findings += environment_findings(os.environ, "fedsam.env, or this shell" if folder else "this shell")
    findings += disk_findings(_folders(folder), free_disk_bytes)
    findings += weight_findings(DEFAULT_BASE_MODEL if kit is None else kit.base_model)
    findings += gpu_findings()
    findings += _data(identifier, kit)
    if kit is None or folder is None:
        return [*findings, unchecked("server", "no --kit: nothing is known of a server, of certificates, of keys, or of the clock there")]
    checks = KitChecks(kit, folder, environment, lambda: datetime.now(UTC), greet, registered_keys)
    return [*findings, *checks.findings()]


def report(findings: Sequence[DoctorFinding]) -> Record:
    """What ``--json`` prints; the keys are in ``docs/formats.md``."""
    counts = {level.value.replace(" ", "_"): sum(finding.level is level for finding in findings) for level in Level}
    return {"schema_version": 1, "findings": [finding.to_dict() for finding in findings], "counts": counts}


def report_text(findings: Sequence[DoctorFinding]) -> str:
    """A line a finding, its fix below it, and what it comes to."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<12} {finding.subject}: {finding.text}")
        if finding.fix is not None:
            lines.append(f"{'':<12}   fix: {finding.fix}")
    counts = [f"{sum(finding.level is level for finding in findings)} {level}" for level in reversed(Level)]
    return "\n".join([*lines, "", ", ".join(counts)])


def exit_code(findings: Iterable[DoctorFinding]) -> int:
    """0 without a problem, else 2."""
    return EXIT_USER_INPUT if any(finding.level is Level.PROBLEM for finding in findings) else EXIT_DONE


def _folders(kit: Path | None) -> dict[str, Path]:
    folders = data_folders()
    found = {"preprocessed": folders.preprocessed, "results": folders.results}
    return found if kit is None else {"kit": kit} | found


def _data(identifier: str | None, kit: SiteKit | None) -> list[DoctorFinding]:
    if identifier is None and kit is not None and kit.role == "server":
        return [unchecked("data", "the server holds no images")]
    return list(data_findings(identifier, None if kit is None else kit.site))
