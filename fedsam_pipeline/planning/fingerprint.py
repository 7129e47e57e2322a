"""Measuring the cases of a site."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedsam_pipeline.dataset.findings import SHOWN_FINDINGS, FindingsError, with_mending
from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.label_scheme import mark_ignored
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.volume import Volume, to_canonical
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.planning.grids import (
    EXTENT_STEP,
    FRACTION_STEP,
    SPACING_STEP,
    distribute,
    intensity_positions,
    linear_position,
    log_position,
)
from fedsam_pipeline.planning.measures import CaseMeasures, ChannelMeasures, SiteMeasures
from fedsam_pipeline.preprocessing.crop import crop, nonzero_box
from fedsam_pipeline.preprocessing.normalize import mean_and_std
from fedsam_pipeline.preprocessing.workers import CaseOutcome, CaseWorkers
from fedsam_pipeline.specs.fingerprint import CASE_MASS

log = logging.getLogger(__name__)


def fingerprint_site(dataset: RawDataset, site: str, *, num_processes: int = 1) -> SiteMeasures:
    """Reads, checks and measures every case of a site, one case a worker in memory; nothing of it leaves before ``privacy.release``.

    Raises:
        FedsamError: a case does not pass ``verify_case``; all that fail are named.
        RuntimeError: a case failed for another reason.
    """
    measures = SiteMeasures(dataset.name, dataset.labels, dataset.channel_names)
    failed = []
    with CaseWorkers(num_processes) as workers:
        for outcome in workers.work(partial(fingerprint_case, dataset), sorted(dataset.sites[site]), f"fingerprint {site}"):
            if outcome.result is not None:
                measures.add(outcome.result)
            else:
                failed.append(outcome)
    if failed:
        raise case_failure(site, failed)
    return measures


def fingerprint_case(dataset: RawDataset, case: str) -> CaseMeasures:
    """Verifies one case and measures it; ``FedsamError`` as ``verify_case`` raises it."""
    image, labels = verify_case(dataset, case)
    labels = replace(labels, array=mark_ignored(labels.array, dataset.ignore_label))  # neither foreground nor of any class
    return measure_case(image, labels, dataset.labels)


def measure_case(image: Volume, labels: Volume, classes: dict[str, int]) -> CaseMeasures:
    """Measures one case.

    Args:
        image: (C, Z, Y, X) as read.
        labels: (Z, Y, X) on the same grid; below 0 where nobody annotated.
        classes: class name to value, background 0 included.
    """
    canonical = to_canonical(image)
    spacing = canonical.geometry.spacing
    start, size = nonzero_box(canonical.array)
    mask = crop(to_canonical(labels).array, start, size)
    foreground = mask > 0
    kept = float(np.prod(size)) / float(np.prod(canonical.geometry.size))
    channels: tuple[ChannelMeasures, ...] = ()
    if foreground.any():
        channels = tuple(_measure_channel(values[foreground]) for values in crop(canonical.array, start, size))
    measured = {name: _measure_class(mask == value, spacing) for name, value in classes.items() if value}
    return CaseMeasures(
        geometry=(
            *(linear_position(length, SPACING_STEP) for length in spacing),
            *size,
            *(linear_position(voxels * length, EXTENT_STEP) for voxels, length in zip(size, spacing, strict=True)),
            linear_position(kept, FRACTION_STEP),
        ),
        channels=channels,
        classes={name: found for name, found in measured.items() if found},
    )


def _measure_channel(values: NDArray[np.float32]) -> ChannelMeasures:
    """``values``: the foreground voxels, (N,), at least one."""
    mean, std = mean_and_std(values)
    positions, counts = np.unique(intensity_positions(values), return_counts=True)
    masses = np.array(distribute(counts, CASE_MASS))
    return ChannelMeasures(mean, std * std, positions[masses > 0].astype(np.int32), masses[masses > 0].astype(np.int32))


def _measure_class(mask: NDArray[np.bool_], spacing: tuple[float, float, float]) -> tuple[int, ...]:
    """Volume, components and the largest component's sides, as ``CLASS_MEASURES`` orders them; nothing where the class is not there."""
    voxels = int(np.count_nonzero(mask))
    if not voxels:
        return ()
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    components, number = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
    largest = _largest_component(components, number)
    sides = [(part.stop - part.start) * length for part, length in zip(largest, spacing, strict=True)]
    return (log_position(voxels * float(np.prod(spacing))), int(number), *(log_position(side) for side in sides))


def _largest_component(components: NDArray[Any], number: int) -> tuple[slice, slice, slice]:
    """Bounding box of the component with most voxels; of equals, the first."""
    sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
    box = ndimage.find_objects(components)[int(np.argmax(sizes))]
    return box[0], box[1], box[2]


def case_failure(where: str, failed: Sequence[CaseOutcome[Any]], *, number: int | None = None, report: Path | None = None) -> Exception:
    """One exception for all cases that failed: a ``FedsamError`` that names them, or a ``RuntimeError`` where one failed by our own fault.

    Args:
        where: the site or dataset, for the message.
        failed: at least one.
        number: of the dataset, see ``FindingsError``.
        report: the file that holds all findings, if there is one.
    """
    for outcome in failed:
        if not isinstance(outcome.error, FedsamError):
            log.error("case %s of %s failed:\n%s", outcome.case, where, outcome.trace)
            return RuntimeError(f"case {outcome.case} of {where} failed: {outcome.error!r}")
    findings = [finding for outcome in failed if isinstance(outcome.error, FindingsError) for finding in outcome.error.findings]
    listed = None if report is None else str(report)
    if len(failed) == 1 and failed[0].error is not None:
        return FindingsError(findings, failed[0].case, listed, number) if findings else failed[0].error
    shown = "\n".join(f"  {outcome.case}: {str(outcome.error).replace(chr(10), chr(10) + '    ')}" for outcome in failed[:SHOWN_FINDINGS])
    more = "\n  ..." + (f" all of them: {listed}" if listed else "")
    return FedsamError(
        f"{len(failed)} cases of {where} do not pass the checks",
        found=f"\n{shown}" + (more if len(failed) > SHOWN_FINDINGS else ""),
        fix=with_mending("mend these files, or leave the cases out of dataset.json and its folders", findings, number),
    )
