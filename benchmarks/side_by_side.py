"""A reference and ours in one process, in turns: what both take, and the ratio that other work on the machine leaves alone."""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.ceiling import Ceiling, synchronize
from benchmarks.nnunet import timed


@dataclass(frozen=True)
class Row:
    """A line of a table: one program on one size.

    Attributes:
        name: of the program.
        size: what it was run on.
        seconds: median of its turns.
        ratio: median over the turns of the reference's seconds over its own; 1 for the reference.
        units: images, voxels or whatever a turn handles.
        flop: floating-point operations of a turn; ``None`` where they do not limit it.
        peak_bytes: what it takes in a process of its own, beyond what that holds before; ``None`` where it was not measured.
        share: of the machine's ceiling; ``None`` without ``flop``.
    """

    name: str
    size: str
    seconds: float
    ratio: float
    units: float
    flop: float | None = None
    peak_bytes: int | None = None
    share: float | None = None

    def to_json(self) -> dict[str, object]:
        """As a line of results holds it."""
        return asdict(self)


def in_turns(programs: Mapping[str, Callable[[], object]], turns: int, device: torch.device | None = None) -> dict[str, list[float]]:
    """Seconds of every program in every turn.

    Each runs once before anything is measured; every second turn runs them in the opposite order.

    Args:
        programs: by name, the reference first.
        turns: how often each is measured.
        device: a GPU is waited for before the clock is read.
    """
    where = device or torch.device("cpu")
    for run in programs.values():
        run()
    synchronize(where)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(turns):
        for name in list(programs)[:: 1 if turn % 2 == 0 else -1]:
            started = time.perf_counter()
            programs[name]()
            synchronize(where)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def rows(
    seconds: Mapping[str, Sequence[float]],
    size: str,
    *,
    units: float,
    flop: Mapping[str, float] | None = None,
    peaks: Mapping[str, int] | None = None,
    ceilings: Mapping[str, Ceiling] | None = None,
) -> list[Row]:
    """The table's lines for one size; the first program is the reference.

    Args:
        seconds: what ``in_turns`` returned.
        size: in words.
        units: images, voxels or whatever a turn handles.
        flop: by program, operations of a turn.
        peaks: by program, bytes.
        ceilings: by program, of the precision that it computes in.
    """
    reference = next(iter(seconds.values()))
    found = []
    for name, own in seconds.items():
        median = statistics.median(own)
        ratio = statistics.median(theirs / ours for theirs, ours in zip(reference, own, strict=True))
        operations = None if flop is None else flop[name]
        share = None if operations is None or ceilings is None else operations / median / ceilings[name].flops
        found.append(Row(name, size, median, ratio, units, operations, None if peaks is None else peaks[name], share))
    return found


def print_rows(found: Sequence[Row], unit: str) -> None:
    """The table; ``unit`` is what a turn handles."""
    print(f"{'':<44}{'size':<26}{'seconds':>10}{unit + '/s':>12}{'times':>8}{'peak MiB':>10}{'ceiling':>9}")
    for row in found:
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
        share = "" if row.share is None else f"{row.share:.0%}"
        print(f"{row.name:<44}{row.size:<26}{row.seconds:>10.4g}{row.units / row.seconds:>12.4g}{row.ratio:>8.2f}{peak:>10}{share:>9}")


def peak_of(module: str, arguments: Sequence[str]) -> int:
    """Peak bytes of ``python -m module ARGUMENTS``, which must print what it took (:func:`print_peak`) as its last line."""
    _give_back()  # the other process needs it
    run = timed([sys.executable, "-W", "ignore", "-m", module, *arguments], {})
    return int(run.output.splitlines()[-1])


def print_peak(run: Callable[[], object], *, also: int = 0) -> None:
    """Runs once and prints the bytes by which its resident memory rose meanwhile (Linux), and ``also``, what was taken before for it: the
    last line of a process of its own."""
    _give_back()  # what is free already would hide as much of what is taken
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = _resident("VmRSS")
    run()
    print(_resident("VmHWM") - before + also)


def _give_back() -> None:
    """Hands freed memory, which ``keep_freed_memory`` holds, back to the system (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))
