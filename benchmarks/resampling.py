"""Resampling of images, labels and predictions: the product's code beside scikit-image as nnU-Net uses it, in turns.

python -m benchmarks.resampling [--size 100 320 320] [--classes 5] [--turns 3] [--subjects image labels]

Images and masks of --size voxels grow by a tenth along each axis. "Planned" is what the planner chooses, linear interpolation; nnU-Net's
choice, cubic splines, stands beside it. An exported prediction has the size's classes and becomes a quarter larger along each axis.
Printed: processor time, which other work on the machine changes least; seconds (medians), times as fast as the reference (median over the
turns), the memory that one run adds in a process of its own, and the share of the machine's copying speed, had every voxel been read and
written once. Exit code 1 where results disagree: cubic images by more than 0.001 standard deviations, masks in more than one voxel of
10,000 (ties). Appends a line to benchmarks/results/resampling.jsonl. Needs the extra dev.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks import records
from benchmarks.ceiling import measure_ceiling
from benchmarks.made_up_ct import ct_plan
from benchmarks.reference import resampling as reference
from benchmarks.side_by_side import Row, in_turns, peak_of, print_peak, print_rows, rows
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.preprocessing.resample import resample, resample_labels
from fedsam_pipeline.specs.case import CaseProperties

RESULTS = records.RESULTS / "resampling.jsonl"
SLICES_AT_ONCE = 16
"""in which a prediction comes"""
MAX_ERROR = 1e-3
MAX_SHARE = 1e-4
Size = tuple[int, int, int]
Program = Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """One subject: programs by name, the reference first, and the bytes that go in and come out."""

    programs: dict[str, Program]
    num_bytes: int
    compared: str
    """the program that must agree with the reference"""
    voxels: int


def image_of(size: Size) -> NDArray[np.float32]:
    """(1, Z, Y, X): noise smoothed over two voxels, mean 0, standard deviation 1."""
    noise = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    smooth = gaussian_filter(noise, 2.0)
    return np.asarray((smooth / smooth.std())[None], dtype=np.float32)


def labels_of(size: Size, classes: int) -> NDArray[np.uint8]:
    """(Z, Y, X): background and ellipsoids beside each other, one a class; each lies in a part of the volume, as organs do."""
    labels = np.zeros(size, dtype=np.uint8)
    z, y, x = (np.arange(length) / length for length in size)
    for label in range(1, classes):
        middle = (label - 0.5) / (classes - 1)
        inside = ((z - 0.5) / 0.3)[:, None, None] ** 2 + ((y - 0.5) / 0.25)[:, None] ** 2 + ((x - middle) * (classes - 1) / 0.55) ** 2
        labels[inside <= 1] = label
    return labels


def logits_of(size: Size, classes: int) -> NDArray[np.float32]:
    """(K, Z, Y, X): 4 for the right class, smoothed noise for all."""
    labels, generator = labels_of(size, classes), np.random.default_rng(1)
    logits = np.empty((classes, *size), dtype=np.float32)
    for label, scores in enumerate(logits):
        scores[...] = gaussian_filter(generator.standard_normal(size, dtype=np.float32), 1.0) + 4 * (labels == label)
    return logits


def export_ours(logits: NDArray[np.float32], size: Size) -> NDArray[np.unsignedinteger]:
    """As ``fedsam_predict`` does: slices arrive in batches, (n, K, H, W)."""
    classes, *stored = logits.shape
    spacing = (1.0, 1.0, 1.0)  # of no consequence: sizes decide
    properties = CaseProperties(
        case="volume",
        original_size=size,
        original_spacing=spacing,
        original_origin=(0.0, 0.0, 0.0),
        original_direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        canonical_size=size,
        crop_start=(0, 0, 0),
        crop_size=size,
        resampled_size=(stored[0], stored[1], stored[2]),
        slice_axis=0,
    )
    parts = (np.moveaxis(logits[:, at : at + SLICES_AT_ONCE], 0, 1) for at in range(0, stored[0], SLICES_AT_ONCE))
    return export_stream(parts, properties, ct_plan("tiny_random", 28, classes=classes, window=28, spacing=spacing))


def task(subject: str, size: Size, classes: int) -> Task:
    """What is measured of a subject."""
    z, y, x = size
    larger = (round(1.1 * z), round(1.1 * y), round(1.1 * x))
    old, new = z * y * x, larger[0] * larger[1] * larger[2]
    if subject == "labels":
        labels = labels_of(size, classes)
        programs: dict[str, Program] = {
            "scikit-image, a class at a time": lambda: reference.resample_labels(labels, larger),
            "ours": lambda: resample_labels(labels, larger),
        }
        return Task(programs, old + new, "ours", new)
    if subject == "export":
        native = (round(1.25 * z), round(1.25 * y), round(1.25 * x))
        logits, voxels = logits_of(size, classes), native[0] * native[1] * native[2]
        programs = {
            "scikit-image, all classes, softmax": lambda: reference.export(logits, native),
            "ours, slice by slice": lambda: export_ours(logits, native),
        }
        return Task(programs, logits.nbytes + voxels, "ours, slice by slice", voxels)
    image, coarse = image_of(size), 0 if subject == "thick slices" else None
    programs = {
        "scikit-image, cubic": lambda: reference.resample_image(image, larger, coarse_axis=coarse),
        "ours, planned": lambda: resample(image, larger, 1, coarse_axis=coarse),
        "ours, cubic": lambda: resample(image, larger, 3, coarse_axis=coarse),
    }
    return Task(programs, 4 * (old + new), "ours, cubic", new)


SUBJECTS = ("image", "thick slices", "labels", "export")


def agrees(subject: str, theirs: NDArray[Any] | None, ours: NDArray[Any] | None) -> bool:
    """Prints how far two results are apart, and says whether that is within the limit."""
    assert theirs is not None and ours is not None  # both have run
    if subject in ("labels", "export"):
        share = float((theirs != ours).mean())
        print(f"{subject}: {share:.2g} of the voxels differ")
        return share <= MAX_SHARE
    error = float(np.abs(theirs - ours).max())
    print(f"{subject}: cubic images differ by {error:.2g} at most")
    return error <= MAX_ERROR


@dataclass
class _Watched:
    """A program, what it returned last, and what processor time each run took."""

    run: Program
    result: NDArray[Any] | None = None
    processor_seconds: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        started = time.process_time()
        self.result = self.run()
        self.processor_seconds.append(time.process_time() - started)


def measure(subject: str, size: Size, classes: int, turns: int, copied: float) -> tuple[list[Row], dict[str, float], bool]:
    """The lines of one subject, the processor time of its programs in seconds, and whether their results agree.

    Args:
        subject: of ``SUBJECTS``.
        size, classes, turns: see the command.
        copied: bytes a second that the machine copies.
    """
    of_subject = task(subject, size, classes)
    names = list(of_subject.programs)
    watched = {name: _Watched(run) for name, run in of_subject.programs.items()}
    seconds = in_turns(watched, turns)
    same = agrees(subject, watched[names[0]].result, watched[of_subject.compared].result)
    processor = {name: statistics.median(each.processor_seconds[1:]) for name, each in watched.items()}  # the first run warms up
    for name, own in processor.items():
        print(f"  {name}: {own:.3g} s of processor time, {processor[names[0]] / own:.1f} times less than the reference")
    arguments = ["--size", *map(str, size), "--classes", str(classes)]
    peaks = {name: peak_of("benchmarks.resampling", [*arguments, "--only", subject, name]) for name in names}
    found = rows(seconds, subject, units=of_subject.voxels / 1e6, peaks=peaks)
    return [replace(row, share=of_subject.num_bytes / row.seconds / copied) for row in found], processor, same


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[100, 320, 320], metavar=("Z", "Y", "X"))
    parser.add_argument("--classes", type=int, default=5, help="background included")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--only", nargs=2, metavar=("SUBJECT", "PROGRAM"), help="run one program once and print the memory that it added")
    arguments = parser.parse_args()
    size: Size = (arguments.size[0], arguments.size[1], arguments.size[2])
    if arguments.only:
        subject, name = arguments.only
        print_peak(task(subject, size, arguments.classes).programs[name])
        return 0
    copied = measure_ceiling(torch.device("cpu"), torch.float32).bytes_per_second
    found: list[Row] = []
    processor: dict[str, dict[str, float]] = {}
    agree = True
    for subject in arguments.subjects:
        of_subject, processor[subject], same = measure(subject, size, arguments.classes, arguments.turns, copied)
        found += of_subject
        agree &= same
    print(f"{' x '.join(map(str, size))} voxels, {arguments.classes} classes, {torch.get_num_threads()} thread(s)")
    print_rows(found, "Mvoxels")
    print(f"the machine copies {copied / 1e9:.1f} GB/s (read and written); {'the results agree' if agree else 'THE RESULTS DISAGREE'}")
    records.keep(
        RESULTS,
        {
            "size": size,
            "classes": arguments.classes,
            "turns": arguments.turns,
            "threads": torch.get_num_threads(),
            "copy_bytes_per_second": copied,
            "agree": agree,
            "processor_seconds": processor,
            "rows": [row.to_json() for row in found],
            **records.machine(),
        },
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
