"""The most memory that the processes of a simulation have held."""

import os
from pathlib import Path

import psutil

WORKER_NAME = "ray::"
"""how Ray titles a process that serves an actor"""


def worker_peak_bytes() -> int | None:
    """Peak resident memory of the largest worker below this process, from start to now, in bytes.

    The kernel keeps the peak (``VmHWM`` of ``/proc/PID/status``, Linux), so nothing is missed between two looks. Memory of a GPU is not
    in it. ``None`` where no worker runs or the system keeps no such number.
    """
    peaks = [_peak(process.pid) for process in psutil.Process().children(recursive=True) if _is_worker(process)]
    return max((peak for peak in peaks if peak is not None), default=None)


def own_peak_bytes() -> int | None:
    """The same of this process, which is the server's."""
    return _peak(os.getpid())


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any(WORKER_NAME in part for part in process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it ended while we looked
        return False


def _peak(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), None)
