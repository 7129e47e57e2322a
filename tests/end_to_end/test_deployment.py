"""A federation as hospitals run it, on loopback: the kit's SuperLink and SuperNodes, TLS, node keys, a signed app. No Ray."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedsam_pipeline.entrypoints.train_federated import main
from fedsam_pipeline.flower import submit
from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.kit import KitRequest, make_kit, place_kit
from fedsam_pipeline.flower.deployment.signing import APP
from fedsam_pipeline.flower.deployment.start_files import START_FILE, read_environment
from tests.end_to_end.commands import environment, run
from tests.pipeline.real_federations import NAME, make_hospitals

SITES = ("site_a", "site_b")
FOLD = Path(NAME, "default__plans__main", "federated__fedavg-int4__seed0", "fold_all")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Deployment:
    """The folders of a server and its sites, and the processes that run there."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def kit(self) -> Path:
        return self.folder / "kit"

    @property
    def variables(self) -> dict[str, str]:
        """Of the server's operator."""
        return read_environment(self.kit / "server")

    def make(self) -> None:
        """Hospitals with their data, and their kit."""
        make_hospitals(self.folder / "hospitals")
        address = ServerAddress("localhost", free_port())
        make_kit(KitRequest(federation="trial", sites=SITES, address=address, base_model="tiny_random"), self.kit, now=datetime.now(UTC))
        place_kit(self.kit / "server", data=self.folder / "server")
        for site in SITES:
            place_kit(self.kit / site, data=self.folder / "hospitals" / site)
            script = self.kit / site / START_FILE
            told = f'site="{site}"'
            script.write_text(script.read_text().replace(told, f'{told} privacy_floor=1 device="cpu"'))

    def start(self, who: str) -> Path:
        """Runs a folder's ``start.sh``; its log."""
        log = self.folder / f"{who}.log"
        with open(log, "ab") as output:
            script = self.kit / who / START_FILE
            self.running.append(
                subprocess.Popen([script], env=environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            )
        return log

    def register(self, site: str) -> None:
        key = self.kit / "server" / "keys" / f"{site}.pub"
        run(self.folder, f"flwr supernode register {key} trial --name {site}", self.variables)

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(reached: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    made.make()
    try:
        log = made.start("server")
        wait_until(lambda: b"Uvicorn running" in log.read_bytes() or b"startup complete" in log.read_bytes(), log)
        for site in SITES:
            made.register(site)
            made.start(site)
        yield made
    finally:
        made.stop()


def test_two_hospitals_train_from_raw_data_to_the_model(deployment: Deployment) -> None:
    flags = "-m tiny_random -f all --rounds 1 --local_steps 1"  # few messages: each starts a process at each site
    printed = run(deployment.folder, f"fedsam_train_federated -d {NAME} --superlink trial {flags}", deployment.variables)
    assert "planning from site_a, site_b" in printed and "round 1:" in printed
    results = deployment.folder / "server" / "results" / FOLD
    assert (results / "adapter.safetensors").is_file()
    beyond = [path for path in (deployment.folder / "server").rglob("*") if path.suffix in (".gz", ".nii", ".b2nd", ".mha")]
    assert not beyond, "images stay where they are"
    for site in SITES:
        trail = deployment.folder / "hospitals" / site / "results" / FOLD / "sites" / site
        run(deployment.folder, f"fedsam_audit verify {trail} --heads {results / 'audit_heads.jsonl'}", deployment.variables)


def test_a_site_does_not_run_an_app_that_nobody_signed(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(APP, tmp_path / "other")
    project = other / "pyproject.toml"
    project.write_text(project.read_text().replace("1.0.0", "1.0.1"))
    for name, value in deployment.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(submit, "installed_app", lambda: build_fab_from_disk(other))
    assert main(["-d", NAME, "--superlink", "trial", "-m", "tiny_random", "--seed", "1"]) == 2
    printed = capfd.readouterr()
    assert "none of its trusted entities has signed it" in printed.out and "the run did not end well" in printed.err
