"""Preprocessing of CT-sized anisotropic volumes: ours beside nnUNetv2_preprocess, same cases, same number of workers, alternately.

python -m benchmarks.nnunet_preprocess [--cases 4] [--side 512] [--slices 90] [-np 2] [--repeats 1]

Slices lie 4 to 6 mm apart, another distance in each case, so that nearly all must be resampled along every axis. Both write 3D
full-resolution cases at their own plan's spacing, which the two planners choose by the same rule. Printed: seconds of each, start-up
included, their ratio, and the memory of the largest process. Appends a line to benchmarks/results/nnunet_preprocess.jsonl.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import records
from benchmarks.ct_cohort import write_cohort
from benchmarks.nnunet import DEFAULT_ENVIRONMENT, NnUnet, Run, timed
from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.preprocessing.store import store_folder
from fedsam_pipeline.preprocessing.store_case import store_case
from fedsam_pipeline.preprocessing.workers import CaseWorkers
from fedsam_pipeline.specs.plans import Plans

DATASET = "Dataset002_ProceduralCT"
RESULTS = records.RESULTS / "nnunet_preprocess.jsonl"


def preprocess_ours(raw: str, preprocessed: str, num_processes: int) -> None:
    """Fills the store of a planned dataset: what the command does after planning."""
    dataset = load_raw_dataset(Path(raw))
    plans = Plans.load(Path(preprocessed) / "plans.json")
    work = partial(store_case, dataset, plans=plans, folder=store_folder(Path(preprocessed), plans))
    with CaseWorkers(num_processes) as workers:
        for outcome in workers.work(work, dataset.cases, "preprocess"):
            if outcome.error is not None:
                raise outcome.error


def _report(arguments: argparse.Namespace, runs: Mapping[str, Sequence[Run]], spacings: Mapping[str, Sequence[float]]) -> None:
    """Prints the table and appends the figures to ``RESULTS``."""
    size = f"about {arguments.slices} x {arguments.side} x {arguments.side}"
    print(f"{arguments.cases} cases of {size}, -np {arguments.np}, {usable_cores()} cores")
    print(f"{'':<10}{'seconds':>10}{'largest process':>18}   target spacing")
    for who, each in runs.items():
        seconds, peak = statistics.median(run.seconds for run in each), max(run.peak_bytes for run in each) / (1 << 30)
        print(f"{who:<10}{seconds:>10.1f}{peak:>14.2f} GiB   {' x '.join(f'{length:.4g}' for length in spacings[who])} mm")
    ratio = statistics.median(b.seconds / a.seconds for a, b in zip(runs["ours"], runs["nnU-Net"], strict=True))
    print(f"ours is {ratio:.1f} times faster (median of {arguments.repeats})")
    record = {
        "size": size,
        "cases": arguments.cases,
        "processes": arguments.np,
        **records.machine(),
        "seconds": {who: [run.seconds for run in each] for who, each in runs.items()},
        "peak_bytes": {who: [run.peak_bytes for run in each] for who, each in runs.items()},
        "ratio": ratio,
    }
    records.keep(RESULTS, record)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--slices", type=int, default=90)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("-np", type=int, default=2, help="worker processes of both")
    parser.add_argument("--environment", type=Path, default=DEFAULT_ENVIRONMENT, help="nnU-Net's virtual environment")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw, preprocessed = folder / "raw" / DATASET, folder / "ours" / DATASET
        write_cohort(raw, cases=arguments.cases, side=arguments.side, slices=arguments.slices, even_gaps=False)
        nnunet = NnUnet(arguments.environment, raw.parent, folder / "nnunet")
        nnunet.run("nnUNetv2_extract_fingerprint", "-d", "2", "-np", str(arguments.np))
        nnunet.run("nnUNetv2_plan_experiment", "-d", "2")
        plan = str(Path(sys.executable).parent / "fedsam_plan_and_preprocess")
        timed(
            [plan, "-d", "2", "--no_pp", "--privacy_floor", "1"],
            {"fedsam_raw": str(raw.parent), "fedsam_preprocessed": str(folder / "ours")},
        )
        call = f"from benchmarks.nnunet_preprocess import preprocess_ours as f; f({str(raw)!r}, {str(preprocessed)!r}, {arguments.np})"
        ours: list[Run] = []
        theirs: list[Run] = []
        for _ in range(arguments.repeats):
            for store in preprocessed.glob("store_*"):
                shutil.rmtree(store)
            ours.append(timed([sys.executable, "-c", call], {}))
            theirs.append(nnunet.run("nnUNetv2_preprocess", "-d", "2", "-c", "3d_fullres", "-np", str(arguments.np)))
        spacing = Plans.load(preprocessed / "plans.json").target_spacing
        their_plan = json.loads((nnunet.preprocessed / DATASET / "nnUNetPlans.json").read_text())
    their_spacing = their_plan["configurations"]["3d_fullres"]["spacing"]
    _report(arguments, {"ours": ours, "nnU-Net": theirs}, {"ours": spacing, "nnU-Net": their_spacing})
    return 0


if __name__ == "__main__":
    sys.exit(main())
