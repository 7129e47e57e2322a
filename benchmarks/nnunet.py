"""nnU-Net in an environment of its own: made once, driven through its commands. For the scripts that compare with it."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = ("nnunetv2==2.8.1", "torch==2.13.0")
DEFAULT_ENVIRONMENT = Path("build/nnunet")


@dataclass(frozen=True)
class Run:
    """What one command took."""

    seconds: float
    peak_bytes: int
    """resident memory of the largest process of the command's tree (Linux counts in KiB)"""
    output: str


class NnUnet:
    """nnU-Net v2 over one workspace.

    Args:
        environment: its virtual environment; made and filled where it is missing.
        raw: folder that holds ``DatasetXXX_Name``; nnU-Net reads our raw layout as it is.
        workspace: its preprocessed files and results go here.
    """

    def __init__(self, environment: Path, raw: Path, workspace: Path) -> None:
        self._bin = environment.absolute() / "bin"
        self.preprocessed = workspace.absolute() / "preprocessed"
        self._variables = {
            "nnUNet_raw": str(raw.absolute()),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(workspace.absolute() / "results"),
        }
        if not (self._bin / "nnUNetv2_preprocess").exists():
            print(f"installing {' '.join(REQUIREMENTS)} into {environment}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
            subprocess.run([str(self._bin / "pip"), "install", "--quiet", *REQUIREMENTS], check=True)

    def run(self, command: str, *arguments: str) -> Run:
        """Runs one of its commands to the end; its output is shown only when it fails."""
        return timed([str(self._bin / command), *arguments], self._variables)


def timed(command: list[str], variables: dict[str, str]) -> Run:
    """Runs a command with extra environment variables; ``RuntimeError`` with its output where it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}:\n{text}")
    return Run(seconds, usage.ru_maxrss * 1024, text)
