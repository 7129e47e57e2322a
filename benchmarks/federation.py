"""What fedsam_train_federated --dry_run says of a run, beside what the run then takes, and the overhead of the federation.

python -m benchmarks.federation [--size demo] [--base_model lite_medsam] [--recipe default] [--rounds 3] [--local_steps 10]
    [--protocol federated] [--planned PREPROCESSED/DatasetXXX_Name]

On the demo cohort, or with --planned on a dataset that is planned already. Estimate and run are processes of their own, so that each has
its own start-up and its own peak. Printed: seconds, MB each way, GiB of a worker and of the server as estimated and as measured, and the
ratio; the run's overhead (seconds after start-up over what its sites' own work takes on the same workers) and its start-up. Appends a line
to benchmarks/results/federation.jsonl. Exit code 1 where an estimate is off by more than 30 %.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.nnunet import timed
from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.files import read_json
from fedsam_pipeline.pipeline.plan_and_preprocess import PlanRequest, plan_and_preprocess
from fedsam_pipeline.pipeline.run_timing import process_started
from fedsam_pipeline.pipeline.train import train_all
from fedsam_pipeline.pipeline.train_estimate import estimate
from fedsam_pipeline.pipeline.train_request import TrainRequest, run_setups

RESULTS = records.RESULTS / "federation.jsonl"
TOLERATED = 0.3
PARTS = ("estimate", "run")
Figures = dict[str, Any]


def estimated(preprocessed: Path, results: Path, request: TrainRequest) -> Figures:
    """What the dry run says."""
    found = estimate(run_setups(preprocessed, results, request), started=process_started())
    return {
        "seconds": found.seconds,
        "bytes_up": found.bytes_up,
        "bytes_down": found.bytes_down,
        "worker_bytes": float(found.worker_bytes or 0),
        "server_bytes": float(found.server_bytes or 0),
        "probe": asdict(found.measured),
    }


def measured(preprocessed: Path, results: Path, request: TrainRequest) -> Figures:
    """What the run takes."""
    setups = run_setups(preprocessed, results, request)
    states = train_all(setups, request, started=process_started())
    timings = [state["timing"] for state in states]
    sites = [
        site for setup in setups for entry in read_json(setup.folder / "communication.json")["rounds"] for site in entry["sites"].values()
    ]
    return {
        "seconds": sum(timing["start_up_seconds"] + timing["seconds"] for timing in timings),
        "bytes_up": sum(site["up"]["bytes_message"] for site in sites),
        "bytes_down": sum(site["down"]["bytes_message"] for site in sites),
        "worker_bytes": max(float(state["peak_memory_bytes"]) for state in states),
        "server_bytes": max(float(state["server_peak_memory_bytes"]) for state in states),
        "overhead": sum(timing["seconds"] for timing in timings) / sum(timing["schedule_seconds"] for timing in timings),
        "start_up_seconds": timings[0]["start_up_seconds"],
        "site_seconds": sum(timing["site_seconds"] for timing in timings),
        "workers": float(states[0]["workers"]),
    }


def compare(said: Figures, took: Figures) -> tuple[list[str], bool]:
    """The table's lines, and whether every estimate is near enough."""
    lines, near = [f"{'':<14}{'estimated':>12}{'measured':>12}{'ratio':>8}"], True
    for name, unit in (("seconds", 1.0), ("bytes_up", 1e6), ("bytes_down", 1e6), ("worker_bytes", 2**30), ("server_bytes", 2**30)):
        ratio = said[name] / took[name]
        good = abs(ratio - 1) <= TOLERATED
        near &= good
        shown = {1.0: name, 1e6: name.replace("bytes", "MB"), 2**30: name.replace("bytes", "GiB")}[unit]
        lines.append(f"{shown:<14}{said[name] / unit:>12.3f}{took[name] / unit:>12.3f}{ratio:>8.2f}{'' if good else '   OFF'}")
    return lines, near


def build_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("demo", "tiny"), default="demo")
    parser.add_argument("--base_model", default="lite_medsam")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local_steps", type=int, default=10)
    parser.add_argument("--protocol", default="federated")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--planned", type=Path)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    return parser


def run(preprocessed: Path, results: Path, arguments: argparse.Namespace) -> dict[str, Figures]:
    """Estimate and run, each in a process of its own, whose last line is its figures."""
    flags = [f"--{name}={getattr(arguments, name)}" for name in ("base_model", "recipe", "rounds", "local_steps", "protocol")]
    flags += [f"--planned={preprocessed}", f"--results={results}"]
    flags += [] if arguments.workers is None else [f"--workers={arguments.workers}"]
    found: dict[str, Figures] = {}
    for part in PARTS:
        started = time.perf_counter()
        output = timed([sys.executable, "-W", "ignore", "-m", "benchmarks.federation", f"--part={part}", *flags], {}).output
        found[part] = json.loads(output.splitlines()[-1])
        print(f"{part}: {time.perf_counter() - started:.1f} s", flush=True)
    return found


def main() -> int:
    """The command."""
    arguments = build_parser().parse_args()
    if arguments.part is not None:
        request = TrainRequest(
            recipe=arguments.recipe,
            rounds=arguments.rounds,
            local_steps=arguments.local_steps,
            protocol=arguments.protocol,
            workers=arguments.workers,
            device="cpu",
        )
        figures = (estimated if arguments.part == "estimate" else measured)(arguments.planned, arguments.results, request)
        print(json.dumps(figures))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder, preprocessed = Path(name), arguments.planned
        if preprocessed is None:
            raw = folder / "raw" / "Dataset001_Demo"
            make_demo_dataset(raw, size=arguments.size)
            plan_and_preprocess(raw, folder / "preprocessed", PlanRequest(arguments.base_model))
            preprocessed = folder / "preprocessed" / raw.name
        found = run(preprocessed.absolute(), folder / "results", arguments)
        left = [path.name for path in folder.rglob(".dry_run_*")]
    lines, near = compare(found["estimate"], found["run"])
    took = found["run"]
    print("\n".join(lines))
    print(f"overhead {took['overhead']:.3f}: sites' own work {took['site_seconds']:.1f} s on {took['workers']:.0f} workers; ", end="")
    print(f"start-up {took['start_up_seconds']:.1f} s")
    shown = {name: value for name, value in vars(arguments).items() if name not in ("part", "results", "planned")}
    dataset = "Dataset001_Demo" if arguments.planned is None else arguments.planned.name
    records.keep(RESULTS, {**shown, "dataset": dataset, **found, **records.machine()})
    return 0 if near and not left else 1


if __name__ == "__main__":
    sys.exit(main())
