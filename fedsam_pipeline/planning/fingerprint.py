"""The fingerprint of a case and of a site."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedsam_pipeline.dataset.integrity import verify_case
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
from fedsam_pipeline.planning.merge import pool_fingerprints
from fedsam_pipeline.preprocessing.crop import crop, nonzero_box
from fedsam_pipeline.preprocessing.normalize import mean_and_std
from fedsam_pipeline.preprocessing.workers import CaseOutcome, CaseWorkers
from fedsam_pipeline.specs.fingerprint import (
    CASE_MASS,
    ChannelFingerprint,
    ClassFingerprint,
    Counts,
    Fingerprint,
    IntensityMoments,
)

log = logging.getLogger(__name__)


def fingerprint_site(dataset: RawDataset, site: str, *, num_processes: int = 1) -> Fingerprint:
    """Reads, checks and measures every case of a site, one case a worker in memory.

    Raises:
        FedsamError: a case does not pass ``verify_case``; all that fail are named.
        RuntimeError: a case failed for another reason.
    """
    with CaseWorkers(num_processes) as workers:
        outcomes = list(workers.work(partial(fingerprint_case, dataset), sorted(dataset.sites[site]), f"fingerprint {site}"))
    if failed := [outcome for outcome in outcomes if outcome.error is not None]:
        raise case_failure(site, failed)
    return pool_fingerprints([outcome.result for outcome in outcomes if outcome.result is not None], num_sites=1)


def fingerprint_case(dataset: RawDataset, case: str) -> Fingerprint:
    """Verifies one case and measures it; ``FedsamError`` as ``verify_case`` raises it."""
    image, labels = verify_case(dataset, case)
    return measure_case(image, labels, dataset.name, dataset.channel_names, dataset.labels)


def measure_case(image: Volume, labels: Volume, dataset_name: str, channel_names: tuple[str, ...], classes: dict[str, int]) -> Fingerprint:
    """The fingerprint of one case.

    Args:
        image: (C, Z, Y, X) as read.
        labels: (Z, Y, X) on the same grid.
        dataset_name, channel_names, classes: of the dataset; ``classes`` maps names to values, background 0 included.
    """
    canonical = to_canonical(image)
    spacing = canonical.geometry.spacing
    start, size = nonzero_box(canonical.array)
    mask = crop(to_canonical(labels).array, start, size)
    foreground = mask > 0
    kept = float(np.prod(size)) / float(np.prod(canonical.geometry.size))
    return Fingerprint(
        dataset_name=dataset_name,
        labels=classes,
        num_sites=1,
        num_cases=1,
        spacing=_once(*(linear_position(length, SPACING_STEP) for length in spacing)),
        size=_once(*size),
        extent=_once(*(linear_position(voxels * length, EXTENT_STEP) for voxels, length in zip(size, spacing, strict=True))),
        kept_fraction={linear_position(kept, FRACTION_STEP): 1},
        channels=tuple(
            _measure_channel(name, values[foreground])
            for name, values in zip(channel_names, crop(canonical.array, start, size), strict=True)
        ),
        classes={name: _measure_class(mask == value, spacing) for name, value in classes.items() if value},
    )


def _measure_channel(name: str, values: NDArray[np.float32]) -> ChannelFingerprint:
    """``values``: the foreground voxels, (N,)."""
    if not values.size:
        return ChannelFingerprint(name=name, moments=IntensityMoments(), histogram={})
    mean, std = mean_and_std(values)
    positions, counts = np.unique(intensity_positions(values), return_counts=True)
    masses = distribute(counts, CASE_MASS)
    return ChannelFingerprint(
        name=name,
        moments=IntensityMoments(weight=1, mean=mean, m2=std * std),
        histogram={int(position): mass for position, mass in zip(positions, masses, strict=True) if mass},
    )


def _measure_class(mask: NDArray[np.bool_], spacing: tuple[float, float, float]) -> ClassFingerprint:
    voxels = int(np.count_nonzero(mask))
    if not voxels:
        return ClassFingerprint(num_cases=0, volume_mm3={}, components={}, extent_mm=({}, {}, {}))
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    components, number = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
    largest = _largest_component(components, number)
    sides = [(part.stop - part.start) * length for part, length in zip(largest, spacing, strict=True)]
    return ClassFingerprint(
        num_cases=1,
        volume_mm3={log_position(voxels * float(np.prod(spacing))): 1},
        components={int(number): 1},
        extent_mm=_once(*(log_position(side) for side in sides)),
    )


def _largest_component(components: NDArray[Any], number: int) -> tuple[slice, slice, slice]:
    """Bounding box of the component with most voxels; of equals, the first."""
    sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
    box = ndimage.find_objects(components)[int(np.argmax(sizes))]
    return box[0], box[1], box[2]


def _once(*positions: int) -> tuple[Counts, Counts, Counts]:
    z, y, x = positions
    return {z: 1}, {y: 1}, {x: 1}


def case_failure(where: str, failed: Sequence[CaseOutcome[Any]]) -> Exception:
    """One exception for all cases that failed: a ``FedsamError`` that names them, or a ``RuntimeError`` where one failed by our own fault.

    Args:
        where: the site or dataset, for the message.
        failed: at least one.
    """
    for outcome in failed:
        if not isinstance(outcome.error, FedsamError):
            log.error("case %s of %s failed:\n%s", outcome.case, where, outcome.trace)
            return RuntimeError(f"case {outcome.case} of {where} failed: {outcome.error!r}")
    if len(failed) == 1 and failed[0].error is not None:
        return failed[0].error
    shown = "\n".join(f"  {outcome.case}: {str(outcome.error).replace(chr(10), chr(10) + '    ')}" for outcome in failed[:5])
    return FedsamError(
        f"{len(failed)} cases of {where} do not pass the checks",
        found=f"\n{shown}" + ("\n  ..." if len(failed) > 5 else ""),
        fix="mend these files, or leave the cases out of dataset.json and its folders",
    )
