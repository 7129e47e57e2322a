"""One case from its raw grid to the store's, in nnU-Net's order: canonical axes, crop, normalize, resample, slice axis first."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.label_scheme import IGNORE, mark_ignored
from fedsam_pipeline.dataset.volume import Volume, to_canonical
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.preprocessing.crop import crop, nonzero_box
from fedsam_pipeline.preprocessing.normalize import normalize
from fedsam_pipeline.preprocessing.resample import coarse_axis, resample, resample_labels, resampled_size
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import Plans

MAX_LOCATIONS = 1000
"""voxels remembered for each foreground class of a case, and of all annotated ones: enough to centre slabs on, few enough to load"""

log = logging.getLogger(__name__)


def preprocess_image(
    volume: Volume, plans: Plans, *, case: str = "case", site: str | None = None, input_files: Sequence[str] = ()
) -> tuple[NDArray[np.float32], CaseProperties]:
    """Preprocesses one image; training and inference share this code.

    Args:
        volume: the image as read, (C, Z, Y, X), in any orientation.
        plans: the plan.
        case, site, input_files: for the record.

    Returns:
        The image (C, S, H, W), float32, unitless, at target spacing, and how to get back to the image's own grid.

    Raises:
        FedsamError: the image has another number of channels than the plan.
    """
    if len(volume.array) != len(plans.channels):
        raise FedsamError(
            f"image {case} has the wrong number of channels",
            found=len(volume.array),
            expected=f"{len(plans.channels)}: {', '.join(channel.name for channel in plans.channels)}",
            fix="give one file a channel, CASE_0000, CASE_0001, ..., in the order of dataset.json",
        )
    canonical = to_canonical(volume)
    start, size = nonzero_box(canonical.array)
    spacing = canonical.geometry.spacing
    properties = CaseProperties(
        case=case,
        site=site,
        original_size=volume.geometry.size,
        original_spacing=volume.geometry.spacing,
        original_origin=volume.geometry.origin,
        original_direction=volume.geometry.direction,
        canonical_size=canonical.geometry.size,
        crop_start=start,
        crop_size=size,
        resampled_size=resampled_size(size, spacing, plans.target_spacing),
        slice_axis=plans.slice_axis,
        input_files=tuple(input_files),
    )
    image = normalize(crop(canonical.array, start, size), plans.channels)
    image = resample(
        image,
        properties.resampled_size,
        plans.resampling.image_order,
        coarse_axis=coarse_axis(spacing, plans.target_spacing),
        coarse_order=plans.resampling.image_order_coarse_axis,
    )
    return np.ascontiguousarray(np.moveaxis(image, 1 + plans.slice_axis, 1)), properties


def preprocess_labels(labels: Volume, properties: CaseProperties, plans: Plans, *, ignore: int | None = None) -> NDArray[Any]:
    """Preprocesses the mask that belongs to an image.

    Args:
        labels: the mask as read, (Z, Y, X), on the image's grid.
        properties: what ``preprocess_image`` returned.
        plans: the plan.
        ignore: the value of voxels that nobody annotated, or ``None``.

    Returns:
        (S, H, W), int8, or int16 beyond 127 classes; ``IGNORE`` (-1) in place of ``ignore``. Ignored voxels are resampled as a class of
        their own, and win ties.
    """
    canonical = mark_ignored(to_canonical(labels).array, ignore)
    inside = crop(canonical, properties.crop_start, properties.crop_size)
    lost = int(np.count_nonzero(canonical > 0)) - int(np.count_nonzero(inside > 0))
    if lost:
        log.warning(
            "case %s: %d labelled voxels lie where the image is empty (all zero) and are left out of training", properties.case, lost
        )
    image = Geometry(properties.original_size, properties.original_spacing, properties.original_origin, properties.original_direction)
    resampled = resample_labels(
        inside,
        properties.resampled_size,
        plans.resampling.label_order,
        coarse_axis=coarse_axis(image.canonical().spacing, plans.target_spacing),
        coarse_order=plans.resampling.image_order_coarse_axis,
    )
    dtype = np.int8 if plans.num_classes <= np.iinfo(np.int8).max else np.int16
    return np.ascontiguousarray(np.moveaxis(resampled, plans.slice_axis, 0), dtype=dtype)


def foreground_locations(labels: NDArray[Any], case: str) -> dict[int, NDArray[np.int32]]:
    """Up to ``MAX_LOCATIONS`` voxels of each class present, drawn without replacement; the draw depends on the case's name only.

    Args:
        labels: (S, H, W).
        case: its name.

    Returns:
        class to (N, 3) voxels (s, h, w), ascending; background and ignored voxels are left out.
    """
    return {int(label): _drawn(labels == label, case, int(label)) for label in np.unique(labels[labels > 0])}


def annotated_locations(labels: NDArray[Any], case: str) -> NDArray[np.int32]:
    """Up to ``MAX_LOCATIONS`` voxels that are not ignored, background too, drawn like ``foreground_locations``.

    nnU-Net centres on such voxels, too, where masks have an ignore label (ignore_label.md): of scribbles a place drawn anywhere holds none.

    Returns:
        (N, 3) voxels (s, h, w), ascending; N = 0 where no voxel is ignored, since any place will do then.
    """
    annotated = labels != IGNORE
    return np.zeros((0, 3), dtype=np.int32) if annotated.all() else _drawn(annotated, case, 0)


def _drawn(mask: NDArray[np.bool_], case: str, label: int) -> NDArray[np.int32]:
    """(N, 3) voxels of a mask, N <= ``MAX_LOCATIONS``."""
    flat = np.flatnonzero(mask)
    if len(flat) > MAX_LOCATIONS:
        seed = int.from_bytes(hashlib.sha256(case.encode("utf-8")).digest()[:8], "little")
        flat = np.sort(np.random.default_rng([seed, label]).choice(flat, MAX_LOCATIONS, replace=False))
    return np.stack(np.unravel_index(flat, mask.shape), axis=1).astype(np.int32)
