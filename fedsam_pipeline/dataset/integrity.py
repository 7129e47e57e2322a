"""Looks into the voxels of a case: do image and mask belong together, and does the mask hold only known classes?"""

import numpy as np

from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.volume import SAME_GRID_MM, Volume, describe_difference, read_image, read_labels
from fedsam_pipeline.errors import FedsamError


def verify_case(dataset: RawDataset, case: str) -> tuple[Volume, Volume]:
    """Reads a labelled case and checks it.

    Args:
        dataset: the raw dataset.
        case: one of ``dataset.cases``.

    Returns:
        The image (C, Z, Y, X) float32 and the mask (Z, Y, X) int16, on the same grid.

    Raises:
        FedsamError: a file is missing or unreadable, channels or mask lie on different grids, NaN voxels, or a label value that
            ``dataset.json`` does not name.
    """
    image = read_image(dataset.image_paths(case))
    path = dataset.label_path(case)
    labels = read_labels(path)
    if image.geometry.size != labels.geometry.size:
        raise FedsamError(
            f"image and mask of {case} differ in shape",
            path=path,
            found=f"{labels.geometry.size} voxels (z, y, x) in the mask",
            expected=f"{image.geometry.size}, as in {dataset.image_paths(case)[0].name}",
            fix="put the mask on the image's grid, or leave the case out",
        )
    if not image.geometry.same_grid(labels.geometry, SAME_GRID_MM):
        raise FedsamError(
            f"image and mask of {case} lie in different places (spacing, origin or direction)",
            path=path,
            found=describe_difference(labels.geometry, image.geometry),
            expected=f"the grid of {dataset.image_paths(case)[0].name}, within {SAME_GRID_MM} mm",
            fix="put the mask on the image's grid; where only the mask's header is wrong, copy the image's header",
        )
    unknown = sorted({int(value) for value in np.unique(labels.array)} - set(dataset.labels.values()))
    if unknown:
        raise FedsamError(
            f"the mask of {case} holds values that dataset.json does not name",
            path=path,
            found=f"label value {', '.join(str(value) for value in unknown[:10])}",
            expected=", ".join(f"{value} ({name})" for name, value in dataset.labels.items()),
            fix="correct the mask, or add the class to labels in dataset.json",
        )
    return image, labels
