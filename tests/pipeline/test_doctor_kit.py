"""``fedsam_doctor --kit``: keys, certificates, the server's answer, the clock and the registered sites."""

import hashlib
import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.certificates import load_node_public_key
from fedsam_pipeline.flower.deployment.common_key import add_common_key
from fedsam_pipeline.flower.deployment.kit import make_site_key, place_kit
from fedsam_pipeline.flower.deployment.reach import Refusal
from fedsam_pipeline.pipeline.doctor_findings import Level
from tests.flower.deployment.kits import NOON, make_test_kit
from tests.pipeline.doctor_for_tests import checks, everyone, listed, only, refused, welcome


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
    expected = [(Level.OK, subject) for subject in ("kit", "authority", "certificate", "key", "app", "server")]
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


@pytest.mark.parametrize(("name", "subject"), [("server/server.key", "key"), ("site_a/site_a.key", "key")])
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
    for name in ("ca.crt", "server.crt", "server.key", "keys/site_a.pub", "app_signature.json"):
        (kit / "server" / name).write_bytes(b"damaged")
    found = listed(checks(kit / "server"))
    assert (Level.PROBLEM, "certificate") in found and (Level.PROBLEM, "app") in found


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
    found = [each for each in checks(kit / "server") if (each.subject, each.level) == ("authority", Level.WARNING)]
    assert [each.text.rpartition(" ")[2] for each in found] == [str(kit / "ca" / name) for name in ("ca.key", "app_signing.key")]
    assert all(each.fix and "offline" in each.fix for each in found)


def test_the_common_key_of_encrypted_sums(kit: Path) -> None:
    path = add_common_key(kit / "site_a", None)
    assert "would leave it in plain" in only(checks(kit / "site_a"), "encryption", Level.PROBLEM).text
    place_kit(kit / "site_a")
    levels = [(finding.level, finding.text) for finding in checks(kit / "site_a") if finding.subject == "encryption"]
    assert [level for level, _ in levels] == [Level.OK, Level.OK]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert levels[-1][1].endswith(f"SHA-256 {digest}: it must be the same at all sites")
    path.chmod(0o644)
    assert "others may read it" in only(checks(kit / "site_a"), "encryption", Level.PROBLEM).text
    shutil.copy(path, kit / "server")
    found = only(checks(kit / "server", registered=everyone(kit / "server")), "encryption", Level.PROBLEM)
    assert "lies at the server" in found.text and "new key" in str(found.fix)
