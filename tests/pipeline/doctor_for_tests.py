"""Reading the doctor's findings, and answers for it to find."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.certificates import load_certificate, load_node_public_key
from fedsam_pipeline.flower.deployment.kit import load_kit
from fedsam_pipeline.flower.deployment.reach import Greeting, GreetingError, Refusal
from fedsam_pipeline.flower.deployment.start_files import read_environment
from fedsam_pipeline.pipeline.doctor_findings import DoctorFinding, Level
from fedsam_pipeline.pipeline.doctor_kit import KitChecks
from tests.flower.deployment.kits import NOON

SITES = {"b": ["b1"], "site_a": ["a2", "a1"]}
"""cases of each site in a dataset for the doctor"""


def listed(findings: Iterator[DoctorFinding]) -> list[tuple[Level, str]]:
    """Levels and subjects; every warning and problem must have its fix, and nothing else has one."""
    found = list(findings)
    assert all((finding.fix is not None) == (finding.level in (Level.WARNING, Level.PROBLEM)) for finding in found)
    assert not [finding for finding in found if finding.fix == "see the message" or not finding.text]
    return [(finding.level, finding.subject) for finding in found]


def only(findings: Iterator[DoctorFinding], subject: str, level: Level) -> DoctorFinding:
    """The one finding of that subject and level."""
    (found,) = [finding for finding in findings if finding.subject == subject and finding.level is level]
    return found


def welcome(ahead_s: float | None = 0.0) -> object:
    """A server that answers well, with the certificate of the kit."""

    def answer(address: ServerAddress, authority: Path, **_: object) -> Greeting:
        return Greeting(load_certificate(authority.parents[1] / "server" / "server.crt"), ahead_s)

    return answer


def refused(refusal: Refusal) -> object:
    def answer(address: ServerAddress, authority: Path, **_: object) -> Greeting:
        raise GreetingError(refusal, "the reason")

    return answer


def nobody(address: ServerAddress, authority: Path) -> dict[bytes, str]:
    return {}


def checks(folder: Path, *, now: datetime = NOON, asked: object = None, registered: object = nobody) -> Iterator[DoctorFinding]:
    kit = load_kit(folder)
    return KitChecks(kit, folder, read_environment(folder), lambda: now, asked or welcome(), registered).findings()  # type: ignore[arg-type]


def everyone(folder: Path) -> object:
    """A SuperLink that knows both sites."""
    return lambda *_: {load_node_public_key(path).strip(): "online" for path in (folder / "keys").iterdir()}
