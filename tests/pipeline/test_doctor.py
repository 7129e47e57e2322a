"""``fedsam_doctor``: what it finds, its level, its fix, and what it says of things it could not check."""

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedsam_pipeline.entrypoints.doctor import main
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.certificates import load_certificate, load_node_public_key
from fedsam_pipeline.flower.deployment.kit import load_kit, make_site_key
from fedsam_pipeline.flower.deployment.reach import Greeting, GreetingError, Refusal, greet
from fedsam_pipeline.flower.deployment.start_files import read_environment
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.pipeline import doctor as doctor_module
from fedsam_pipeline.pipeline.doctor_findings import DoctorFinding, Level
from fedsam_pipeline.pipeline.doctor_kit import KitChecks
from fedsam_pipeline.pipeline.doctor_machine import (
    FULL_BYTES,
    SCARCE_BYTES,
    data_findings,
    disk_findings,
    environment_findings,
    gpu_findings,
    version_findings,
    weight_findings,
)
from tests.dataset.raw_for_tests import make_textured
from tests.flower.deployment.kits import NOON, free_port, make_test_kit, tls_server

SITES = {"b": ["b1"], "site_a": ["a2", "a1"]}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, and the environment as it was: the command takes over a kit's."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    for name in ("fedsam_raw", "fedsam_preprocessed", "fedsam_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("fedsam_cache", "cache")
    monkeypatch.setattr(doctor_module, "free_disk_bytes", lambda folder: SCARCE_BYTES)
    yield
    os.environ.clear()
    os.environ.update(before)


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


# this machine


def test_versions_outside_their_ranges() -> None:
    requirements = ["flwr[simulation]>=1.41,<1.42", "torch>=2.13,<2.14", "numpy>=2.4", 'pydicom>=3; extra == "dicom"']
    here = {"flwr": "1.42.0", "torch": "2.13.0+cpu", "numpy": None, "fedsam-pipeline": "0.1.0"}
    found = list(version_findings(requirements, here.get))
    assert [(finding.level, finding.text) for finding in found] == [
        (Level.PROBLEM, "flwr 1.42.0, expected <1.42,>=1.41"),
        (Level.PROBLEM, "numpy is not installed, expected >=2.4"),
    ]
    good = list(version_findings(requirements, (here | {"flwr": "1.41.3", "numpy": "2.4.6"}).get))
    assert [finding.level for finding in good] == [Level.OK] and "flwr 1.41.3" in good[0].text


def test_the_versions_of_this_environment_are_fine() -> None:
    assert listed(version_findings()) == [(Level.OK, "versions")]


def test_an_environment_that_calls_home() -> None:
    assert listed(environment_findings({}, "here")) == [(Level.OK, "environment")]
    assert listed(environment_findings({"FLWR_TELEMETRY_ENABLED": "0"}, "here")) == [(Level.OK, "environment")]
    loud = only(environment_findings({"FLWR_TELEMETRY_ENABLED": "1"}, "here"), "environment", Level.WARNING)
    assert "FLWR_TELEMETRY_ENABLED=1" in loud.text and loud.fix and "here" in loud.fix


@pytest.mark.parametrize(
    ("free", "level"),
    [(FULL_BYTES - 1, Level.PROBLEM), (FULL_BYTES, Level.WARNING), (SCARCE_BYTES - 1, Level.WARNING), (SCARCE_BYTES, Level.OK)],
)
def test_a_disk_that_is_nearly_full(free: int, level: Level, tmp_path: Path) -> None:
    asked = []

    def free_bytes(folder: Path) -> int:
        asked.append(folder)
        return free

    assert listed(disk_findings({"results": Path("not/there/yet")}, free_bytes)) == [(level, "disk, results")]
    assert asked == [tmp_path]


def test_a_folder_that_is_a_file_and_a_disk_that_is_gone() -> None:
    Path("results").touch()
    wrong = only(disk_findings({"results": Path("results")}, lambda _: 1 << 40), "disk, results", Level.PROBLEM)
    assert "cannot be written to" in wrong.text

    def gone(_: Path) -> int:
        raise OSError(5, "Input/output error")

    assert "Input/output error" in only(disk_findings({"raw": Path("raw")}, gone), "disk, raw", Level.PROBLEM).text


def test_missing_and_damaged_weights() -> None:
    missing = only(weight_findings("lite_medsam"), "base weights", Level.PROBLEM)
    assert missing.fix and missing.fix.startswith("fedsam_download_weights lite_medsam")
    weights = base_model_spec("lite_medsam").weights
    assert weights is not None
    Path("cache").mkdir()
    (Path("cache") / weights.file_name).write_bytes(b"half a download")
    damaged = only(weight_findings("lite_medsam"), "base weights", Level.PROBLEM)
    assert "fail their hash check" in damaged.text and damaged.fix and "delete the file" in damaged.fix
    assert listed(weight_findings("tiny_random")) == [(Level.OK, "base weights")]


def test_a_driver_without_a_gpu_for_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert listed(gpu_findings()) == [(Level.OK, "GPU")]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert listed(gpu_findings()) == [(Level.WARNING, "GPU")]


# the data


def test_sound_data_and_nothing_written() -> None:
    make_textured(Path("fedsam_data/raw"), sites=SITES)
    before = sorted(Path().rglob("*"))
    assert listed(data_findings(None, "site_a")) == [(Level.OK, "data")]
    assert sorted(Path().rglob("*")) == before


def test_a_damaged_case() -> None:
    folder = make_textured(Path("fedsam_data/raw"), sites=SITES)
    image = folder / "imagesTr" / "a2_0001.nii.gz"
    image.write_bytes(image.read_bytes()[:60])
    found = only(data_findings("7", "site_a"), "data", Level.PROBLEM)
    assert found.text.startswith("a2: ") and "a2_0001.nii.gz" in found.text and found.fix


def test_a_dataset_without_cases_of_this_site() -> None:
    make_textured(Path("fedsam_data/raw"))
    found = only(data_findings(None, "site_a"), "data", Level.PROBLEM)
    assert "cases of a, b, none of site_a" in found.text and found.fix and 'site = "site_a"' in found.fix


def test_no_dataset_is_said_to_be_unchecked_and_a_wrong_number_is_a_problem() -> None:
    assert listed(data_findings(None, None)) == [(Level.UNCHECKED, "data")]
    assert listed(data_findings("3", None)) == [(Level.PROBLEM, "data")]


# the kit


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


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit, its authority's key taken offline."""
    made = make_test_kit(tmp_path / "kit", host="fl.hospital.org")
    shutil.rmtree(made / "ca")
    return made


def test_a_sound_site(kit: Path) -> None:
    expected = [(Level.OK, subject) for subject in ("kit", "authority", "key", "server", "certificate", "clock")]
    assert listed(checks(kit / "site_a")) == [*expected, (Level.UNCHECKED, "registered")]


def test_a_sound_server(kit: Path) -> None:
    expected = [(Level.OK, subject) for subject in ("kit", "authority", "certificate", "key", "app key", "server")]
    found = listed(checks(kit / "server", registered=everyone(kit / "server")))
    assert found == [*expected, (Level.UNCHECKED, "clock"), (Level.OK, "sites"), (Level.OK, "sites")]


@pytest.mark.parametrize("role", ["server", "site_a"])
def test_an_expired_certificate(role: str, kit: Path) -> None:
    found = only(checks(kit / role, now=NOON + timedelta(days=366), registered=everyone(kit / "server")), "certificate", Level.PROBLEM)
    assert "expired" in found.text and found.fix and "fedsam_site_kit renew" in found.fix


def test_a_certificate_that_expires_soon(kit: Path) -> None:
    found = only(checks(kit / "server", now=NOON + timedelta(days=350)), "certificate", Level.WARNING)
    assert "expires in 15 days" in found.text


def test_a_certificate_from_tomorrow_is_this_machines_clock(kit: Path) -> None:
    found = only(checks(kit / "site_a", now=NOON - timedelta(days=2)), "authority", Level.PROBLEM)
    assert found.fix and "clock" in found.fix


def test_an_expired_authority(kit: Path) -> None:
    assert only(checks(kit / "site_a", now=NOON + timedelta(days=5 * 365)), "authority", Level.PROBLEM).fix


def test_a_name_that_the_certificate_lacks(kit: Path) -> None:
    content = json.loads((kit / "server" / "kit.json").read_text())
    (kit / "server" / "kit.json").write_text(json.dumps(content | {"host": "new.hospital.org"}))
    found = only(checks(kit / "server"), "certificate", Level.PROBLEM)
    assert "fl.hospital.org" in found.text and "sites ask for new.hospital.org" in found.text


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (Refusal.UNREACHABLE, "cannot be reached"),
        (Refusal.NO_TLS, "speaks no TLS"),
        (Refusal.UNTRUSTED, "not of this authority"),
        (Refusal.NOT_YET_VALID, "not valid yet"),
        (Refusal.EXPIRED, "has expired"),
        (Refusal.OTHER_NAME, "another name"),
    ],
)
@pytest.mark.parametrize("role", ["server", "site_a"])
def test_a_server_that_does_not_answer_as_it_should(role: str, refusal: Refusal, words: str, kit: Path) -> None:
    found = list(checks(kit / role, asked=refused(refusal)))
    wrong = only(iter(found), "server", Level.PROBLEM)
    assert words in wrong.text and "the reason" in wrong.text and wrong.fix
    assert only(iter(found), "clock", Level.UNCHECKED)


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [
        (0.4, Level.OK),
        (-50, Level.OK),
        (3, Level.WARNING),
        (-200, Level.WARNING),
        (6, Level.PROBLEM),
        (-400, Level.PROBLEM),
        (None, Level.UNCHECKED),
    ],
)
def test_the_clock_against_the_servers(ahead_s: float | None, level: Level, kit: Path) -> None:
    found = only(checks(kit / "site_a", asked=welcome(ahead_s)), "clock", level)
    assert ahead_s is None or ("ahead of" if ahead_s > 0 else "behind") in found.text


def test_a_missing_key(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit", keys_at_site=True)
    found = only(checks(kit / "site_a"), "key", Level.PROBLEM)
    assert found.fix == f"fedsam_site_kit key {kit / 'site_a'}"
    make_site_key(kit / "site_a")
    assert only(checks(kit / "site_a"), "key", Level.OK)
    assert "has not come yet" in next(each for each in checks(kit / "server") if each.subject == "sites").text


@pytest.mark.parametrize(
    ("name", "subject"), [("server/server.key", "key"), ("server/app_signing.key", "app key"), ("site_a/site_a.key", "key")]
)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_may_read(name: str, subject: str, mode: int, kit: Path) -> None:
    (kit / name).chmod(mode)
    found = only(checks((kit / name).parent), subject, Level.PROBLEM)
    assert f"{mode:03o}" in found.text and found.fix == f"chmod 600 {kit / name}"


def test_keys_and_certificates_of_different_kits(kit: Path, tmp_path: Path) -> None:
    other = make_test_kit(tmp_path / "other", host="fl.hospital.org")
    shutil.copy(other / "site_a" / "site_a.pub", kit / "site_a")
    assert "not the public half" in only(checks(kit / "site_a"), "key", Level.PROBLEM).text
    shutil.copy(other / "server" / "server.crt", kit / "server")
    found = list(checks(kit / "server"))
    assert "did not sign" in only(iter(found), "certificate", Level.PROBLEM).text
    assert "not the key of" in only(iter(found), "key", Level.PROBLEM).text


def test_damaged_files_are_findings_and_hide_no_others(kit: Path) -> None:
    for name in ("ca.crt", "site_a.key", "site_a.pub"):
        (kit / "site_a" / name).write_bytes(b"damaged")
    (kit / "site_a" / "trusted_entities.yaml").unlink()
    found = listed(checks(kit / "site_a"))
    problems = [(Level.PROBLEM, subject) for subject in ("authority", "key", "app key")]
    assert found == [
        (Level.OK, "kit"),
        problems[0],
        (Level.OK, "key"),
        *problems[1:],
        (Level.UNCHECKED, "server"),
        (Level.UNCHECKED, "clock"),
    ]
    for name in ("ca.crt", "server.crt", "server.key", "keys/site_a.pub"):
        (kit / "server" / name).write_bytes(b"damaged")
    assert (Level.PROBLEM, "certificate") in listed(checks(kit / "server"))


def test_sites_that_are_not_registered(kit: Path) -> None:
    known = {load_node_public_key(kit / "server" / "keys" / "site_b.pub").strip(): "registered"}
    found = list(checks(kit / "server", registered=lambda *_: known))
    missing = only(iter(found), "sites", Level.PROBLEM)
    assert missing.text == "site_a is not registered" and missing.fix
    assert f"flwr supernode register {kit / 'server' / 'keys' / 'site_a.pub'} trial --name site_a" in missing.fix
    assert only(iter(found), "sites", Level.OK).text == "site_b: registered"

    def silent(*_: object) -> dict[bytes, str]:
        raise FedsamError("the SuperLink does not list its nodes", found="403", fix="look at its log")

    assert "403" in only(checks(kit / "server", registered=silent), "sites", Level.PROBLEM).text


def test_a_folder_that_was_moved(kit: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(kit / "site_a", tmp_path / "moved"))
    found = only(checks(moved, asked=refused(Refusal.UNREACHABLE)), "kit", Level.PROBLEM)
    assert found.fix == f"fedsam_site_kit place {moved}"


def test_a_kit_of_another_flower(kit: Path) -> None:
    content = json.loads((kit / "site_a" / "kit.json").read_text())
    content["made_with"] = {"fedsam_pipeline": "9.9.9", "flwr": "1.40.0"}
    (kit / "site_a" / "kit.json").write_text(json.dumps(content))
    found = list(checks(kit / "site_a"))
    assert "refuses peers" in only(iter(found), "kit", Level.PROBLEM).text
    assert "9.9.9" in only(iter(found), "kit", Level.WARNING).text


def test_the_authoritys_key_on_this_machine(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    found = only(checks(kit / "server"), "authority", Level.WARNING)
    assert str(kit / "ca" / "ca.key") in found.text and found.fix and "offline" in found.fix


# the command


def test_a_site_against_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC)
    kit = make_test_kit(tmp_path / "kit", host="localhost", port=free_port(), now=now)
    shutil.rmtree(kit / "ca")
    site = kit / "site_a"
    assert main(["--kit", str(site), "--json"]) == 2
    content = json.loads(capsys.readouterr().out)
    assert [finding["subject"] for finding in content["findings"] if finding["level"] == "problem"] == ["server"]
    assert content["counts"]["problem"] == 1 and content["schema_version"] == 1
    with tls_server(kit / "server" / "server.crt", kit / "server" / "server.key", date=now) as port:
        greeting = greet(ServerAddress("localhost", port), site / "ca.crt", clock=lambda: now)
        found = listed(checks(site, now=now, asked=lambda *_, **__: greeting))
    assert not [finding for finding in found if finding[0] is Level.PROBLEM]


def test_without_a_kit_it_says_what_it_did_not_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2  # no weights here
    text = capsys.readouterr().out
    assert "problem      base weights: the weights of lite_medsam are missing" in text
    assert "fix: fedsam_download_weights lite_medsam" in text
    assert "not checked  server: no --kit" in text and "not checked  data: " in text
    assert text.splitlines()[-1].startswith("1 problem, ")
    assert not list(Path().iterdir())


def test_a_folder_that_is_no_kit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kit", "nowhere"]) == 2
    assert "error: a file is missing" in capsys.readouterr().err


def test_the_kits_environment_holds_for_the_checks(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    make_textured(kit / "site_a" / "data" / "raw", sites=SITES)
    found = doctor_module.examine(None, kit / "site_a")
    assert only(iter(found), "data", Level.OK).text.startswith("Dataset007_Tiny: 3 cases")
    assert str(kit / "site_a" / "data" / "results") in only(iter(found), "disk, results", Level.OK).text
