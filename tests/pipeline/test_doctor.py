"""``fedsam_doctor`` as a user types it: what it prints, and what it says of things it could not check."""

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedsam_pipeline.entrypoints.doctor import main
from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.reach import greet
from fedsam_pipeline.pipeline import doctor as doctor_module
from fedsam_pipeline.pipeline.doctor_findings import Level
from fedsam_pipeline.pipeline.doctor_machine import SCARCE_BYTES
from tests.dataset.raw_for_tests import make_textured
from tests.flower.deployment.kits import free_port, make_test_kit, tls_server
from tests.pipeline.doctor_for_tests import SITES, checks, listed, only


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
