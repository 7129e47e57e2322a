"""Runs the installed commands as a user does: by name, in a folder, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

DATA_VARIABLES = ("fedsam_raw", "fedsam_preprocessed", "fedsam_results")


def environment(**variables: str) -> dict[str, str]:
    """The user's environment, without data folders, with the commands of this interpreter's installation first."""
    inherited = {name: value for name, value in os.environ.items() if name not in DATA_VARIABLES}
    return inherited | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"} | variables


def run(folder: Path, command: str, variables: Mapping[str, str] | None = None) -> str:
    """Runs a command line (split at blanks) in ``folder``; it must end with code 0. Returns what it printed."""
    done = subprocess.run(
        command.split(), cwd=folder, env=environment(**(variables or {})), capture_output=True, encoding="utf-8", timeout=240, check=False
    )
    assert done.returncode == 0, f"{command} ended with code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _hear_interrupts() -> None:
    """A shell starts what it runs in the background deaf to interrupts, and its children are born so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_when(
    folder: Path, command: str, reached: Callable[[], bool], how: signal.Signals, variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Starts a command and stops it as soon as ``reached``: a kill hits its whole process group, an interrupt the command alone.

    Returns:
        The exit code (negative: the signal) and what it wrote to standard error.
    """
    process = subprocess.Popen(
        command.split(),
        cwd=folder,
        env=environment(**(variables or {})),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )
    try:
        deadline = time.monotonic() + 120
        while not reached():
            assert process.poll() is None, f"{command} ended before it could be stopped\n{process.stderr and process.stderr.read()}"
            assert time.monotonic() < deadline, f"{command} did not come so far"
            time.sleep(0.01)
        if how == signal.SIGKILL:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        _, text = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, text
