"""A federation as hospitals run it, on loopback: the kit's SuperLink and SuperNodes, TLS, node keys, a signed app. No Ray."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsam_pipeline.flower.deployment.local import LocalFederation, wait_until
from fedsam_pipeline.flower.deployment.start_files import read_environment
from tests.pipeline.real_federations import NAME, make_hospitals

SITES = ("site_a", "site_b")
SERVER = "server"


def run_place(seed: int, fold: str = "all") -> Path:
    """Of a training, below the results."""
    return Path(NAME, "default__plans__main", f"federated__fedavg-int4__seed{seed}", f"fold_{fold}")


@dataclass
class Training:
    """A ``fedsam_train_federated --superlink`` that runs."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str) -> None:
        """Until it has printed this."""
        wait_until(lambda: words in self.printed or self.process.poll() is not None, self.log)
        assert words in self.printed, self.printed

    def ended(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout=280)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(self.printed) from error


class Deployment(LocalFederation):
    """Two hospitals with the tiny cohort."""

    @property
    def variables(self) -> dict[str, str]:
        """Of the server's operator."""
        return read_environment(self.kit / SERVER)

    def results(self, seed: int = 0) -> Path:
        """The server's folder of the run."""
        return self.data(SERVER) / "results" / run_place(seed)

    def site_folder(self, site: str, seed: int = 0) -> Path:
        """What a site keeps of the run."""
        return self.data(site) / "results" / run_place(seed) / "sites" / site

    def rounds(self, seed: int = 0) -> list[dict[str, Any]]:
        """The records of its rounds."""
        lines = (self.results(seed) / "progress.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == "round"]

    def train(self, flags: str) -> Training:
        """Starts a training; what it prints goes to a file."""
        log = self.folder / f"train_{len(list(self.folder.glob('train_*.log')))}.log"
        with open(log, "wb") as output:
            command = f"fedsam_train_federated -d {NAME} --superlink trial -m tiny_random {flags}"
            environment = self.server_environment()
            process = subprocess.Popen(command.split(), cwd=self.folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        return Training(process, log)


@contextmanager
def deployed(folder: Path) -> Iterator[Deployment]:
    """A server that listens, and sites that are registered and started."""
    make_hospitals(folder / "hospitals")
    with Deployment(folder, SITES, "tiny_random", 'privacy_floor=1 device="cpu"') as made:
        made.make()
        made.start_all()
        yield made
