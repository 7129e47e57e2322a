"""``fedsam_plot_overlays``: a picture of every case with its mask, for a person to look at."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.label_scheme import IGNORE
from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.dataset.volume import to_canonical
from fedsam_pipeline.errors import EXIT_DONE, EXIT_SOME_FAILED, FedsamError
from fedsam_pipeline.files import write_bytes
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.paths import dataset_id
from fedsam_pipeline.planning.decision import AXIS_NAMES, mm
from fedsam_pipeline.planning.geometry_rules import slice_axis
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.report.overlay import mask_png
from fedsam_pipeline.specs.plans import Plans, check_plans_name

COMMAND = "fedsam_plot_overlays"
OVERLAY_FOLDER = "overlays"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CasePicture:
    """What is drawn of a case; arrays (Z, Y, X), or (S, H, W) of the store."""

    image: NDArray[np.floating]
    labels: NDArray[np.integer]
    spacing: tuple[float, float, float]
    axis: int
    """of the arrays, the one that is cut"""
    axis_name: str
    ignore: int | None
    upright: bool


Source = Callable[[str], CasePicture]


def plot_raw(raw: Path, output: Path, *, number: int | None = None, channel: int = 0) -> int:
    """Draws labelled cases of a raw dataset in LPS axes, cut along the axis that the planner would take for this case alone.

    Args:
        raw: the raw dataset's folder.
        output: folder of the pictures, ``CASE.png``.
        number: of cases, evenly spread over their sorted names; ``None`` for all.
        channel: the channel to show.

    Returns:
        0, or 1 where some cases could not be drawn: they are named, the others are written.

    Raises:
        FedsamError: the dataset is not usable, there is no such channel, or the folder cannot be written to.
    """
    dataset = load_raw_dataset(raw)
    rules = load_thresholds().slice_axis
    _check_channel(channel, dataset.channel_names)

    def picture(case: str) -> CasePicture:
        image, labels = (to_canonical(volume) for volume in verify_case(dataset, case))
        size = image.geometry.size
        axis = slice_axis(image.geometry.spacing, (float(size[0]), float(size[1]), float(size[2])), rules).value
        array = image.array[channel]
        return CasePicture(array, labels.array, image.geometry.spacing, axis, AXIS_NAMES[axis], dataset.ignore_label, axis != 0)

    owner = {case: site for site, cases in dataset.sites.items() for case in cases}
    classes = {name: value for name, value in dataset.labels.items() if value}
    return _plot_all(_spread(dataset.cases, number), owner, picture, classes, dataset.channel_names[channel], output)


def plot_preprocessed(folder: Path, plans_name: str, output: Path, *, number: int | None = None, channel: int = 0) -> int:
    """Draws the cases of a preprocessed store, cut along the plan's slice axis; arguments and result as ``plot_raw``.

    Args:
        folder: the preprocessed dataset.
        plans_name: of the plan, whose store is drawn.
        output: folder of the pictures.
        number: of cases.
        channel: the channel to show.

    Raises:
        FedsamError: the plan or its store is missing or broken, there is no such channel, or the folder cannot be written to.
    """
    check_plans_name(plans_name)
    again = f"fedsam_plan_and_preprocess -d {dataset_id(folder.name)} -p {plans_name}"
    plans = Plans.load(folder / f"{plans_name}.json", fix=again)
    store = CaseStore(store_folder(folder, plans))
    names = [each.name for each in plans.channels]
    _check_channel(channel, names)
    cases = store.cases()
    if not cases:
        raise FedsamError("no case is preprocessed for this plan", path=store.folder, expected="at least one case", fix=again)
    first, (second, third) = plans.slice_axis, (axis for axis in range(3) if axis != plans.slice_axis)
    spacing = plans.target_spacing[first], plans.target_spacing[second], plans.target_spacing[third]

    def picture(case: str) -> CasePicture:
        stored = store.open(case)
        return CasePicture(stored.image[channel], stored.labels[:], spacing, 0, AXIS_NAMES[first], IGNORE, first != 0)

    chosen = _spread(cases, number)
    owner = {case: store.open(case).properties.site or "no site" for case in chosen}
    classes = {name: plans.labels[name] for name in plans.foreground_names}
    return _plot_all(chosen, owner, picture, classes, names[channel], output)


def _plot_all(
    cases: Sequence[str], owner: dict[str, str], picture: Source, classes: dict[str, int], channel_name: str, output: Path
) -> int:
    failures: dict[str, str] = {}
    with log_file(output / "logs", COMMAND), logging_redirect_tqdm():
        for case in tqdm(cases, desc="drawing", unit="case", disable=None):
            try:
                drawn = picture(case)
                ignore = drawn.ignore if drawn.ignore is not None and np.any(drawn.labels == drawn.ignore) else None
                title = f"{case}, {owner[case]}, {channel_name}, cut along {drawn.axis_name}, voxels {mm(drawn.spacing)}"
                png = mask_png(
                    drawn.image,
                    drawn.labels,
                    classes,
                    ignore=ignore,
                    spacing=drawn.spacing,
                    axis=drawn.axis,
                    upright=drawn.upright,
                    title=title,
                )
            except Exception as error:
                if len(cases) == 1:
                    raise
                failures[case] = str(error)
                log.error("%s FAILED: %s", case, error, exc_info=not isinstance(error, FedsamError))
                continue
            write_bytes(output / f"{case}.png", png)
    print(f"{len(cases) - len(failures)} pictures written to {output}; they show patients, so they stay at the site")
    if failures:
        print(f"{len(failures)} of {len(cases)} cases failed:")
        for case, reason in failures.items():
            print(f"  {case}: {reason}")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _spread(cases: Sequence[str], number: int | None) -> list[str]:
    """``number`` cases, evenly spread; all where there are no more."""
    if number is None or number >= len(cases):
        return list(cases)
    return [cases[index * len(cases) // number] for index in range(number)]


def _check_channel(channel: int, names: Sequence[str]) -> None:
    if channel >= len(names):
        raise FedsamError(
            "there is no such channel",
            found=channel,
            expected=", ".join(f"{number} ({name})" for number, name in enumerate(names)),
            fix="mend --channel",
        )
