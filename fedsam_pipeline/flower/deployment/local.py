"""All machines of a federation on this one, over loopback: each a kit folder, data folders and a service of its own."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from fedsam_pipeline.federation.audit_chain import AUDIT_FILE
from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.kit import RUNTIME_PORT, SERVER_FOLDER, KitRequest, make_kit, place_kit
from fedsam_pipeline.flower.deployment.start_files import DATA_NAMES, START_FILE, commands_folder, read_environment

FEDERATION = "trial"
POLL_SECONDS = 0.2
RESTART_SECONDS = 2.0
_LISTENS = b"Uvicorn running"


class LocalFederation:
    """A SuperLink and SuperNodes that are started, killed and started again. Leaving it as a context kills what still runs.

    Args:
        folder: holds the kit in ``kit``, the sites' data in ``hospitals/SITE``, the server's in ``server``, and a log for each of them.
        sites: their names.
        base_model: of the registry.
        node_config: keys for every SuperNode, such as ``privacy_floor=1 device="cpu"``.
    """

    def __init__(self, folder: Path, sites: Sequence[str], base_model: str, node_config: str = "") -> None:
        self.folder, self.sites, self._base_model, self._node_config = folder.absolute(), tuple(sites), base_model, node_config
        self.running: dict[str, Service] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for who in list(self.running):
            self.kill(who)

    @property
    def kit(self) -> Path:
        """The start-up kit."""
        return self.folder / "kit"

    def data(self, who: str) -> Path:
        """Data folders of a site or of the server."""
        return self.folder / SERVER_FOLDER if who == SERVER_FOLDER else self.folder / "hospitals" / who

    def log(self, who: str) -> Path:
        """What its processes print."""
        return self.folder / f"{who}.log"

    def make(self) -> None:
        """Makes the kit, for ports that are free now, on loopback alone."""
        address = ServerAddress("localhost", _free_port())
        request = KitRequest(federation=FEDERATION, sites=self.sites, address=address, base_model=self._base_model)
        make_kit(request, self.kit, now=datetime.now(UTC))
        for who in (SERVER_FOLDER, *self.sites):
            place_kit(self.kit / who, data=self.data(who))
        self._change(SERVER_FOLDER, {"--host 0.0.0.0": "--host 127.0.0.1"})
        for number, site in enumerate(self.sites):
            told, port = f'site="{site}"', f"--port {RUNTIME_PORT + number}"
            self._change(site, {told: f"{told} {self._node_config}".strip(), port: f"--port {_free_port()}"})

    def _change(self, who: str, replaced: Mapping[str, str]) -> None:
        """What this machine, which is many, needs otherwise in a ``start.sh``."""
        script = self.kit / who / START_FILE
        text = script.read_text(encoding="utf-8")
        for old, new in replaced.items():
            if old not in text:
                raise RuntimeError(f"{script} does not say {old}")
            text = text.replace(old, new)
        script.write_text(text, encoding="utf-8")

    def server_environment(self) -> dict[str, str]:
        """Of the server's operator."""
        return _environment() | read_environment(self.kit / SERVER_FOLDER)

    def start(self, who: str) -> None:
        """Runs a folder's ``start.sh`` as a service; returns at once. Each site gets its share of the cores, one at the least: it
        believes that the machine is its own."""
        cores = sorted(os.sched_getaffinity(0))
        if who in self.sites:
            place = self.sites.index(who)
            cores = cores[place :: len(self.sites)] or [cores[place % len(cores)]]
        self.running[who] = Service(self.kit / who / START_FILE, self.log(who), cores)

    def start_server(self) -> None:
        """Returns when it listens."""
        log = self.log(SERVER_FOLDER)
        before = log.stat().st_size if log.exists() else 0
        self.start(SERVER_FOLDER)
        wait_until(lambda: _LISTENS in log.read_bytes()[before:], log)

    def register(self, site: str) -> None:
        """Makes a site's key known to the SuperLink."""
        key = self.kit / SERVER_FOLDER / "keys" / f"{site}.pub"
        command = [str(commands_folder() / "flwr"), "supernode", "register", str(key), FEDERATION, "--name", site]
        done = subprocess.run(command, env=self.server_environment(), cwd=self.folder, capture_output=True, encoding="utf-8", check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{site} could not be registered: {done.stdout}{done.stderr}")

    def start_all(self) -> None:
        """Server first; every site is registered and started."""
        self.start_server()
        for site in self.sites:
            self.register(site)
            self.start(site)

    def kill(self, who: str) -> None:
        """As a power cut does: all processes of a machine at once, without a word."""
        self.running.pop(who).kill()

    def wait_for_message(self, site: str, place: Path, kind: str, *, round_number: int, seconds: float = 240.0) -> None:
        """Until a site works on a message: its audit trail has it.

        Args:
            site: whose trail.
            place: of the run, below the results.
            kind: type of the message.
            round_number: of the message.
            seconds: until ``TimeoutError``.
        """
        trail = self.data(site) / "results" / place / "sites" / site / AUDIT_FILE

        def at_work() -> bool:
            lines = [json.loads(line) for line in trail.read_text(encoding="utf-8").splitlines()] if trail.exists() else []
            return any((line["direction"], line["message"], line["round"]) == ("in", kind, round_number) for line in lines)

        wait_until(at_work, self.log(site), seconds)


class Service:
    """A program that is started again when it ends, as systemd does with the kit's units; what it left behind is killed before.

    Args:
        program: to run, in a process group of its own.
        log: what it prints is added there.
        cores: that it may use.
    """

    def __init__(self, program: Path, log: Path, cores: Sequence[int]) -> None:
        self._program, self._log, self._cores = program, log, list(cores)
        self._over, self._lock = threading.Event(), threading.Lock()
        self._process = self._started()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the process group that runs now."""
        return self._process.pid

    def kill(self) -> None:
        """All its processes, for good."""
        with self._lock:
            self._over.set()
            groups = {self._process.pid, *_sessions(self._process.pid)}
            for group in groups:
                _kill_group(group)
        self._thread.join()

    def _keep(self) -> None:
        while True:
            self._process.wait()
            with self._lock:
                _kill_group(self._process.pid)
            if self._over.wait(RESTART_SECONDS):
                return
            with self._lock:
                if self._over.is_set():
                    return
                self._process = self._started()

    def _started(self) -> "subprocess.Popen[bytes]":
        with open(self._log, "ab") as output:
            process = subprocess.Popen([self._program], env=_environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        os.sched_setaffinity(process.pid, self._cores)
        return process


def _sessions(pid: int) -> set[int]:
    """The process groups of a process and all that it started, such as the work that a site does beside its answers."""
    groups = set()
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(ProcessLookupError):
                groups.add(os.getpgid(process.pid))
    return groups - {os.getpgid(0)}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):  # none of it is left
        os.killpg(group, signal.SIGKILL)


def wait_until(reached: Callable[[], bool], log: Path, seconds: float = 240.0) -> None:
    """Polls; ``TimeoutError`` with the end of a log where it takes too long."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"nothing came of it in {seconds:g} s; {log} ends with\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}"
            )
        time.sleep(POLL_SECONDS)


def _environment() -> dict[str, str]:
    """This process's, without its data folders, with the commands of this installation first."""
    inherited = {name: value for name, value in os.environ.items() if name not in {f"fedsam_{name}" for name in DATA_NAMES}}
    return inherited | {"PATH": f"{commands_folder()}{os.pathsep}{os.environ['PATH']}"}
