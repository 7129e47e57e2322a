"""What a round costs with more and more sites: seconds, bytes, the server's memory. A small model is fitted to it.

python -m benchmarks.scaling [--sites 4 8 16 32 64] [--rounds 2] [--local_steps 1] [--base_model tiny_random] [--recipe flap_sam]
    [--rank 0] [--plot FILE.svg]

Sites of two tiny volumes each are trained in simulation, every number of sites in a process of its own, whose resident memory is read
fifty times a second. --rank widens LoRA, so that an update is of several MB. Printed for each number of sites: start-up, seconds and bytes
of a round, the overhead, and how far the server's memory rises above what it was when the first site began; then the model

    seconds = a + b * sites      bytes = c * sites      rise = d

fitted to all but the largest run by least squares (d: their largest, since sites that are asked a few at a time do not add to it), and what
it says of that run beside the measurement. --plot draws the server's memory
over time. Appends a line to benchmarks/results/scaling.jsonl.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psutil

from benchmarks import records
from benchmarks.many_sites import write_cohort
from benchmarks.nnunet import timed
from fedsam_pipeline.files import read_json, write_bytes
from fedsam_pipeline.pipeline.plan_and_preprocess import PlanRequest, plan_and_preprocess
from fedsam_pipeline.pipeline.run_timing import process_started
from fedsam_pipeline.pipeline.train import train_all
from fedsam_pipeline.pipeline.train_request import RunSetup, TrainRequest, run_setups
from fedsam_pipeline.report.style import label, new_figure, site_style, svg_bytes
from fedsam_pipeline.specs.recipe import Recipe

RESULTS = records.RESULTS / "scaling.jsonl"
SAMPLE_SECONDS = 0.02
DRAWN = 200
"""points of a line in the plot"""
MIB = 1 << 20


class MemoryCurve(threading.Thread):
    """Memory of this process, read until it is stopped: (seconds since the epoch, bytes).

    Resident memory without what is shared: messages pass through Ray's store, all of whose pages that were ever touched would count.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.points: list[tuple[float, int]] = []
        self._done = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self._done.wait(SAMPLE_SECONDS):
            memory = process.memory_info()
            self.points.append((time.time(), memory.rss - memory.shared))

    def stop(self) -> None:
        """Ends it."""
        self._done.set()
        self.join()


def _setup(arguments: argparse.Namespace, number: int) -> tuple[RunSetup, TrainRequest]:
    """The run of the first ``number`` sites."""
    request = TrainRequest(
        recipe=arguments.recipe, rounds=arguments.rounds, local_steps=arguments.local_steps, val_every=0, device="cpu", fold="all"
    )
    (setup,) = run_setups(arguments.planned, arguments.results / str(number), request)
    model = setup.model
    if arguments.rank:
        values = model.recipe.to_dict()
        model = replace(model, recipe=Recipe.from_dict(values | {"lora": values["lora"] | {"rank": arguments.rank}}))
    sites = tuple(replace(site, model=model) for site in setup.sites[:number])
    validated = {site.site: setup.validated[site.site] for site in sites}
    return replace(setup, sites=sites, validated=validated, model=model, workers=min(setup.workers, number)), request


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in this process."""
    started, began = process_started(), time.time() - time.perf_counter()
    (number,) = arguments.sites
    setup, request = _setup(arguments, number)
    curve = MemoryCurve()
    curve.start()
    (state,) = train_all([setup], request, started=started)
    curve.stop()
    lines = [json.loads(line) for line in (setup.folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = [line for line in lines if line["event"] == "round"]
    manifest = read_json(setup.folder / "manifest.json")
    first_work = began + started + state["timing"]["start_up_seconds"]
    last_round = (setup.folder / "checkpoints" / f"round_{request.rounds:04d}").stat().st_mtime
    at_first = next(size for when, size in curve.points if when >= first_work)
    during = [(when - first_work, size - at_first) for when, size in curve.points if first_work <= when <= last_round]
    return {
        "sites": number,
        "workers": state["workers"],
        "start_up_seconds": state["timing"]["start_up_seconds"],
        "overhead": state["timing"]["overhead"],
        "round_seconds": fmean(line["seconds"] for line in rounds[1:]),
        "round_bytes": fmean(line["bytes_up"] + line["bytes_down"] for line in rounds[1:]),
        "update_bytes": 4 * sum(int(np.prod(entry["shape"])) for entry in manifest["tensors"] if entry["travels"] == "both"),
        "server_bytes": at_first,
        "rise_bytes": max(size for _, size in during),
        "worker_bytes": state["peak_memory_bytes"],
        "curve": during[:: max(1, len(during) // DRAWN)],
    }


def fit(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The model's coefficients: seconds and bytes of a round by least squares from the number of sites, and the server's largest rise."""
    sites = np.array([run["sites"] for run in runs], np.float64)
    line = np.stack([np.ones_like(sites), sites], axis=1)

    def solved(matrix: Any, name: str) -> list[float]:
        return [float(value) for value in np.linalg.lstsq(matrix, np.array([run[name] for run in runs], np.float64), rcond=None)[0]]

    (a, b), (c,) = solved(line, "round_seconds"), solved(line[:, 1:], "round_bytes")
    return {"a_seconds": a, "b_seconds_a_site": b, "c_bytes_a_site": c, "d_rise_bytes": max(float(run["rise_bytes"]) for run in runs)}


def predicted(model: dict[str, float], sites: int) -> dict[str, float]:
    """What the model says of a round with so many sites."""
    return {
        "round_seconds": model["a_seconds"] + model["b_seconds_a_site"] * sites,
        "round_bytes": model["c_bytes_a_site"] * sites,
        "rise_bytes": model["d_rise_bytes"],
    }


def plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """The server's memory over time, a line a run, in updates."""
    figure, (ax,) = new_figure(7.0, 3.2, 1)
    update = runs[0]["update_bytes"]
    title = f"The server's memory above what it was at the start, in updates of {update / 1e6:.1f} MB"
    label(ax, title, "rounds, as a share of the run", "updates")
    for index, run in enumerate(runs):
        when, size = np.array(run["curve"]).T
        colour, style = site_style(index)
        ax.plot(when / when[-1], size / update, color=colour, linestyle=style, linewidth=1.2, label=f"{run['sites']} sites")
    ax.legend(fontsize=8, frameon=False)
    write_bytes(path, svg_bytes(figure))


def build_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--local_steps", type=int, default=1)
    parser.add_argument("--base_model", default="tiny_random")
    parser.add_argument("--recipe", default="flap_sam")
    parser.add_argument("--rank", type=int, default=0, help="of LoRA; 0: the recipe's")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--planned", type=Path, help="a cohort of benchmarks.many_sites that is planned already")
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """The command."""
    parser = build_parser()
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(measured(arguments)))
        return 0
    if len(arguments.sites) < 3 or arguments.rounds < 2:
        parser.error("at least three numbers of sites, and two rounds: the first is a warm-up")
    runs = []
    with tempfile.TemporaryDirectory() as name:
        planned = arguments.planned
        if planned is None:
            raw = Path(name) / "raw" / "Dataset001_ManySites"
            write_cohort(raw, max(arguments.sites))
            plan_and_preprocess(raw, Path(name) / "preprocessed", PlanRequest(arguments.base_model, privacy_floor=1))
            planned = Path(name) / "preprocessed" / raw.name
        flags = [f"--{key}={getattr(arguments, key)}" for key in ("rounds", "local_steps", "recipe", "rank")]
        flags += ["--part", f"--planned={planned}", f"--results={name}"]
        print(f"{'sites':>6}{'start-up s':>12}{'round s':>10}{'MB a round':>12}{'overhead':>10}{'rise MiB':>10}{'updates':>9}", flush=True)
        for number in sorted(arguments.sites):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scaling", f"--sites={number}", *flags]
            run = json.loads(timed(command, {}).output.splitlines()[-1])
            runs.append(run)
            rise = run["rise_bytes"]
            print(f"{number:>6}{run['start_up_seconds']:>12.1f}{run['round_seconds']:>10.2f}{run['round_bytes'] / 1e6:>12.3f}", end="")
            print(f"{run['overhead']:>10.2f}{rise / MIB:>10.1f}{rise / run['update_bytes']:>9.1f}", flush=True)
    model = fit(runs[:-1])
    print("fitted without the largest run: " + ", ".join(f"{name} {value:.4g}" for name, value in model.items()))
    for name, value in predicted(model, runs[-1]["sites"]).items():
        print(f"{runs[-1]['sites']} sites, {name}: {value:.4g} by the model, {runs[-1][name]:.4g} measured")
    if arguments.plot is not None:
        plot(runs, arguments.plot)
    shown = {key: value for key, value in vars(arguments).items() if key not in ("planned", "plot", "part", "results")}
    records.keep(RESULTS, {**shown, "runs": [run | {"curve": []} for run in runs], "model": model, **records.machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
