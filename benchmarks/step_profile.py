"""Where the time of a training round goes: the operations of our optimizer steps, by kind.

python -m benchmarks.step_profile [--modes flap_sam_224 late_lora_cached_224 tiny_56] [--steps 4] [--device cpu]

The steps are those of benchmarks/training_step.py (random weights, made-up slices), forward, backward and update, after one that is not
counted. Torch's profiler times every operation; what lies between them is Python and waiting for slabs. Appends a line a mode to
benchmarks/results/step_profile.jsonl.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import records
from benchmarks.ceiling import synchronize
from benchmarks.training_step import MODES, Comparison, padded_vit
from fedsam_pipeline.model.device import choose_device

RESULTS = records.RESULTS / "step_profile.jsonl"
KINDS = {
    "products of matrices": ("mm", "linear", "matmul"),
    "convolutions": ("conv",),
    "normalization": ("norm",),
    "GELU and softmax": ("gelu", "softmax"),
    "copies, casts and sums": ("copy_", "cat", "add", "sum", "mul", "clone", "div", "index", "fill_", "sub"),
    "optimizer and clipping": ("adamw", "foreach"),
}
"""kind to what its operations' names hold, the first that fits"""
OTHER, BETWEEN = "other operations", "between operations"


def kind_of(operation: str) -> str:
    """The kind of an operation by torch's name for it, such as ``aten::addmm``."""
    name = operation.removeprefix("aten::").lower()
    for kind in ("optimizer and clipping", *KINDS):
        if any(part in name for part in KINDS[kind]):
            return kind
    return OTHER


def profiled(name: str, steps: int, device: torch.device) -> dict[str, float]:
    """Seconds by kind of some steps of a mode, and of what lies between operations."""
    with tempfile.TemporaryDirectory() as folder, padded_vit():
        turn = Comparison(MODES[name], Path(folder), device).our_turn()
        turn(1)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        synchronize(device)
        with profile(activities=activities, acc_events=True) as watched:
            started = time.perf_counter()  # starting and ending the profiler is no part of a step
            turn(steps)
            synchronize(device)
            total = time.perf_counter() - started
    found: dict[str, float] = {}
    for event in watched.key_averages():
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        found[kind_of(event.key)] = found.get(kind_of(event.key), 0.0) + spent / 1e6
    found[BETWEEN] = max(0.0, total - sum(found.values()))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=sorted(MODES), default=["flap_sam_224", "late_lora_cached_224", "tiny_56"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    device = choose_device(given.device)
    for name in given.modes:
        found = profiled(name, given.steps, device)
        total = sum(found.values())
        print(f"\n{name}: {given.steps} steps of {MODES[name].batch} images, {device.type}, {torch.get_num_threads()} thread(s)")
        for kind, seconds in found.items():
            print(f"{kind:<28}{seconds / given.steps:>9.3f} s a step{seconds / total:>7.0%}")
        record = {"mode": name, "steps": given.steps, "seconds": found, "device": device.type, "threads": torch.get_num_threads()}
        records.keep(RESULTS, record | records.machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
