"""Seconds and peak memory of our surface metrics beside independent libraries, on one pair of masks in one run.

python -m benchmarks.surface_metrics [--side 256] [--repeats 3]

HD95 beside MedPy's, NSD at 2 mm beside that of its authors (surface-distance), on two ellipsoids that fill most of a cube of anisotropic
voxels. Every program runs in a process of its own: seconds are the median of its repeats without start-up, memory is the peak of its
resident set, less that of a process that only makes the masks. Exit code 1 where values differ: HD95 by more than 1e-6 mm, NSD by more
than 0.01. Appends a line to benchmarks/results/surface_metrics.jsonl. Needs the extra dev.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import records
from benchmarks.nnunet import timed

SPACING = (3.0, 0.8, 0.8)
NSD_MM = 2.0
RESULTS = records.RESULTS / "surface_metrics.jsonl"
TOLERATED = {"hd95": 1e-6, "nsd": 0.01}
PAIRS = (("hd95", "medpy"), ("nsd", "surface-distance"))
Mask = NDArray[np.bool_]


def ellipsoids(side: int) -> tuple[Mask, Mask]:
    """A reference and a prediction that is shifted and stretched by some percent; (side, side, side) each.

    Slice by slice: what making them takes must not hide what the metrics take.
    """

    def body(centre: tuple[float, ...], radii: tuple[float, ...]) -> Mask:
        along = [((np.arange(side) / side - middle) / radius) ** 2 for middle, radius in zip(centre, radii, strict=True)]
        mask = np.empty((side, side, side), dtype=bool)
        for z in range(side):
            mask[z] = along[0][z] + along[1][:, None] + along[2][None] <= 1
        return mask

    return body((0.5, 0.5, 0.5), (0.43, 0.39, 0.35)), body((0.51, 0.49, 0.51), (0.41, 0.41, 0.36))


def program(name: str) -> Callable[[Mask, Mask], float]:
    """What is measured; libraries are imported here, so that a process holds only its own."""
    if name == "ours hd95":
        from fedsam_pipeline.evaluation.surface import hd95

        return lambda reference, prediction: hd95(reference, prediction, SPACING)
    if name == "ours nsd":
        from fedsam_pipeline.evaluation.surface_dice import surface_dice

        return lambda reference, prediction: float(surface_dice(reference, prediction, SPACING, (NSD_MM,))[0])
    if name == "medpy hd95":
        from medpy.metric import binary

        return lambda reference, prediction: float(binary.hd95(prediction, reference, voxelspacing=SPACING))
    if name == "surface-distance nsd":
        from surface_distance.metrics import compute_surface_dice_at_tolerance, compute_surface_distances

        return lambda reference, prediction: float(
            compute_surface_dice_at_tolerance(compute_surface_distances(reference, prediction, SPACING), NSD_MM)
        )
    return lambda *_: float("nan")


def measure(name: str, side: int, repeats: int) -> dict[str, float]:
    """In this process: the value, and the median of the seconds."""
    masks, run, seconds, value = ellipsoids(side), program(name), [], float("nan")
    for _ in range(repeats):
        started = time.perf_counter()
        value = run(*masks)
        seconds.append(time.perf_counter() - started)
    return {"value": value, "seconds": statistics.median(seconds)}


def in_process(name: str, side: int, repeats: int) -> dict[str, float]:
    """:func:`measure` in a process of its own, with its peak memory."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.surface_metrics", "--side", str(side), "--repeats", str(repeats)]
    run = timed([*command, "--only", name], {})
    found: dict[str, float] = json.loads(run.output.splitlines()[-1])
    return found | {"peak_bytes": run.peak_bytes}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="voxels of each edge")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", metavar="PROGRAM", help="measure one program in this process and print it as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.side, arguments.repeats)))
        return 0
    base = in_process("masks alone", arguments.side, 1)["peak_bytes"]
    record: dict[str, Any] = {"side": arguments.side, "spacing": SPACING, "repeats": arguments.repeats, "metrics": {}}
    agree = True
    print(f"{'':<28}{'value':>12}{'seconds':>10}{'MiB':>8}")
    for metric, library in PAIRS:
        found = {who: in_process(f"{who} {metric}", arguments.side, arguments.repeats) for who in ("ours", library)}
        for who, row in found.items():
            row["peak_bytes"] -= base
            print(f"{f'{metric}, {who}':<28}{row['value']:>12.6f}{row['seconds']:>10.3f}{row['peak_bytes'] / 2**20:>8.0f}")
        ours, theirs = found.values()
        print(
            f"{metric}: {theirs['seconds'] / ours['seconds']:.1f} times as fast as {library}, "
            f"{theirs['peak_bytes'] / ours['peak_bytes']:.1f} times less memory"
        )
        agree &= abs(ours["value"] - theirs["value"]) <= TOLERATED[metric]
        record["metrics"][metric] = found
    record |= records.machine()
    print("agree" if agree else "DISAGREE")
    records.keep(RESULTS, record)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
