"""What prompts are worth: one trained model without, with prompts from the reference, and prompted by itself.

python -m benchmarks.prompts FOLD_FOLDER [FOLD_FOLDER ...] [--cases N] [--device auto] [--keep FILE]

FOLD_FOLDER is a trained fold (`fedsam_results/DatasetXXX_Name/.../fold_K`) of a plan with `prompts.mode` box or point. The fold's
validation cases are read from `fedsam_raw`, their names from `splits_final.json` in `fedsam_preprocessed`. Every case is segmented four
times by the same model, through `Segmenter`, mirroring as trained, and scored on its own grid:

    none      without prompts
    slices    a prompt for each object of the reference on each of its slices, its four largest: what training draws
    objects   a prompt for each object of the reference in the volume, its four largest: a box around the whole of it, a point in its middle
    self      the model's own mask prompts it a second time (--self_prompt)

Prompts from the reference are inexact, as in training: sides of boxes (in the plane of the slice, for `slices`) and places of points are
moved by up to the plan's `jitter_mm`, drawn for each case from its name.

Printed: Dice (evaluation's rule) of each site, each class and their means, difference to `none`, seconds. A line each is appended to
benchmarks/results/prompts.jsonl (--keep).
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from benchmarks import records
from fedsam_pipeline import Segmenter
from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.label_scheme import IGNORE, mark_ignored
from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.site_mapping import read_mapped_labels
from fedsam_pipeline.dataset.splits import load_splits
from fedsam_pipeline.dataset.volume import Volume
from fedsam_pipeline.errors import EXIT_DONE, EXIT_USER_INPUT, FedsamError
from fedsam_pipeline.evaluation.metrics import counts
from fedsam_pipeline.evaluation.summary import combine_sites, summarize_site
from fedsam_pipeline.files import read_json
from fedsam_pipeline.inference.patient_prompts import require_prompted
from fedsam_pipeline.memory import keep_freed_memory
from fedsam_pipeline.model.objects import MAX_OBJECTS, slice_objects
from fedsam_pipeline.paths import data_folders
from fedsam_pipeline.specs.plans import Plans

RESULTS = records.RESULTS / "prompts.jsonl"
WAYS = ("none", "slices", "objects", "self")


def reference_prompts(reference: Volume, plans: Plans, generator: np.random.Generator, *, whole: bool) -> dict[str, Any]:
    """Prompts as ``prompts.json`` has them for one case, LPS.

    Args:
        reference: (Z, Y, X) class numbers; negative ones are ignored.
        plans: labels, slice axis, kind of prompts and jitter.
        generator: of the jitter.
        whole: for objects of the volume rather than of slices.
    """
    geometry = reference.geometry
    axis = 2 - geometry.canonical_axes()[0][2 - plans.slice_axis]  # of the array; orders are of (x, y, z)
    marked: dict[str, Any] = {}
    for name, label in plans.labels.items():
        objects = list(_objects(reference.array, label, None if whole else axis)) if label else []
        if objects and plans.prompts.mode == "box":
            marked[name] = {"boxes": [_box(voxels, geometry, plans, generator, None if whole else axis) for voxels in objects]}
        elif objects:
            marked[name] = {"points": [_point(voxels, geometry, plans, generator) for voxels in objects]}
    return marked


def _objects(labels: NDArray[Any], label: int, axis: int | None) -> Iterator[NDArray[np.int64]]:
    """(N, 3) voxels (z, y, x) of the largest objects of a class, in the volume or on each slice along an axis."""
    if axis is None:
        components, _ = ndimage.label(labels == label, np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())[1:]
        yield from (np.argwhere(components == component) for component in 1 + np.argsort(-sizes, kind="stable")[:MAX_OBJECTS])
        return
    for number, plane in enumerate(np.moveaxis(labels, axis, 0)):
        yield from (np.insert(pixels, axis, number, axis=1) for pixels in slice_objects(plane, label))


def _box(
    voxels: NDArray[np.int64], geometry: Geometry, plans: Plans, generator: np.random.Generator, axis: int | None
) -> list[list[float]]:
    """Two corners, mm; not moved along ``axis``."""
    jitter = generator.uniform(-1, 1, size=(2, 3)) * plans.prompts.jitter_mm / np.asarray(geometry.spacing)
    if axis is not None:
        jitter[:, axis] = 0
    ends = np.stack([voxels.min(axis=0) - 0.5, voxels.max(axis=0) + 0.5]) + jitter
    return _mm(ends, geometry)


def _point(voxels: NDArray[np.int64], geometry: Geometry, plans: Plans, generator: np.random.Generator) -> list[float]:
    """The voxel of the object nearest to its middle, which is moved; mm."""
    wanted = voxels.mean(axis=0) + generator.uniform(-1, 1, size=3) * plans.prompts.jitter_mm / np.asarray(geometry.spacing)
    nearest = voxels[np.argmin(np.square((voxels - wanted) * geometry.spacing).sum(axis=1))]
    return _mm(nearest[None].astype(np.float64), geometry)[0]


def _mm(voxels: NDArray[np.float64], geometry: Geometry) -> list[list[float]]:
    """(N, 3) voxels (z, y, x) to N places (x, y, z), mm, LPS."""
    offsets = (voxels * geometry.spacing)[:, ::-1] @ np.reshape(geometry.direction, (3, 3)).T
    places: list[list[float]] = (offsets + geometry.origin).tolist()
    return places


def read_reference(dataset: RawDataset, case: str) -> Volume:
    """The mask of a case, ``IGNORE`` where nobody annotated."""
    mapped = read_mapped_labels(dataset.label_path(case), dataset.mapping)
    return Volume(mark_ignored(mapped.array, dataset.ignore_label), mapped.geometry)


def score(segmenter: Segmenter, way: str, dataset: RawDataset, cases: list[str]) -> dict[str, Any]:
    """Dice of the cases, segmented in one of ``WAYS``, and seconds of it."""
    scheme = dataset.label_scheme
    annotated = scheme.annotated(dataset.site_labels)
    tables: dict[str, list[NDArray[np.int64]]] = {}
    seconds = 0.0
    for case in tqdm(cases, desc=way, unit="case", disable=None):
        reference = read_reference(dataset, case)
        prompts = None
        if way in ("slices", "objects"):
            generator = np.random.default_rng(int.from_bytes(hashlib.sha256(case.encode("utf-8")).digest()[:8], "little"))
            prompts = reference_prompts(reference, segmenter.plans, generator, whole=way == "objects")
        started = time.perf_counter()
        mask = segmenter.predict_image(dataset.image_paths(case), prompts=prompts).mask
        seconds += time.perf_counter() - started
        table = counts(reference.array, mask, segmenter.plans.num_classes, groups=list(scheme.scored.values()), ignore=IGNORE)
        tables.setdefault(dataset.site_of(case), []).append(table)
    of_sites = {
        site: summarize_site(members, scheme.scorable(annotated[site]) if site in annotated else None)
        for site, members in sorted(tables.items())
    }
    names = list(scheme.scored)
    return {
        "seconds": seconds,
        "all_sites": combine_sites(of_sites).to_dict(names),
        "sites": {site: dice.to_dict(names) for site, dice in of_sites.items()},
    }


def validation_cases(fold: Path) -> tuple[RawDataset, list[str]]:
    """The raw dataset of a trained fold, and its validation cases.

    Raises:
        FedsamError: a folder or file is missing, or the fold has no validation cases of its own.
    """
    run = read_json(fold / "run.json", fix="name a trained fold folder")
    folders = data_folders()
    dataset = load_raw_dataset(folders.raw / run["dataset"])
    splits = load_splits(folders.preprocessed / run["dataset"] / "splits_final.json", dataset.cases, dataset.patients)
    if not run["fold"].isdigit() or int(run["fold"]) >= len(splits):
        raise FedsamError("this fold has no validation cases", path=fold, found=f"fold {run['fold']}", fix="name a fold with a number")
    return dataset, sorted(splits[int(run["fold"])]["val"])


def measure(fold: Path, device: str, most: int | None) -> dict[str, Any]:
    """The line of one trained fold; prints the table on the way.

    Args:
        fold: its folder.
        device: as in ``Segmenter``.
        most: cases, evenly spread; ``None``: all.

    Raises:
        FedsamError: the model takes no prompts, or as ``validation_cases``.
    """
    segmenter = Segmenter(fold, device=device)
    require_prompted(segmenter.plans)
    dataset, cases = validation_cases(fold)
    if most is not None and most < len(cases):
        cases = [cases[index] for index in np.linspace(0, len(cases) - 1, most).round().astype(int)]
    print(f"{fold}: {len(cases)} cases, prompts.mode {segmenter.plans.prompts.mode}, jitter {segmenter.plans.prompts.jitter_mm:.3g} mm")
    found: dict[str, Any] = {}
    for way in WAYS:
        if way == "self":
            segmenter = Segmenter(fold, device=device, self_prompt=True)
        found[way] = score(segmenter, way, dataset, cases)
        _show(way, found)
    return {
        "dataset": dataset.name,
        "fold": str(fold.name),
        "cases": len(cases),
        "model": segmenter.record().to_dict(),
        "mode": segmenter.plans.prompts.mode,
        "jitter_mm": segmenter.plans.prompts.jitter_mm,
        "found": found,
    } | records.machine()


def _show(way: str, found: dict[str, Any]) -> None:
    first, here = found[WAYS[0]], found[way]
    columns = {name: here["all_sites"]["classes"][name] for name in here["all_sites"]["classes"]}
    columns |= {site: values["dice"] for site, values in here["sites"].items()}
    if way == WAYS[0]:
        print(f"{'prompts':<10}{'Dice':>8}{'to none':>9}{'seconds':>9}  " + " ".join(f"{name[:12]:>12}" for name in columns))
    own, free = here["all_sites"]["dice"], first["all_sites"]["dice"]
    difference = "" if own is None or free is None else f"{own - free:+.4f}"
    cells = " ".join(f"{_text(value):>12}" for value in columns.values())
    print(f"{way:<10}{_text(own):>8}{difference:>9}{here['seconds']:>9.1f}  {cells}", flush=True)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path, metavar="FOLD_FOLDER")
    parser.add_argument("--cases", type=int, metavar="N", help="at most so many cases a fold (default: all)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--keep", type=Path, default=RESULTS, help="file of the results")
    arguments = parser.parse_args()
    keep_freed_memory()
    try:
        for fold in arguments.folds:
            records.keep(arguments.keep, measure(fold, arguments.device, arguments.cases))
    except FedsamError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_INPUT
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
