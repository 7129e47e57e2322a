"""A target spacing of the user's own, judged before a plan is written: the median case must keep its shape and fit into memory."""

import math

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.planning.decision import AXIS_NAMES, mm
from fedsam_pipeline.planning.grids import median
from fedsam_pipeline.planning.rules import median_size
from fedsam_pipeline.preprocessing.budget import USABLE_SHARE, case_memory, free_memory
from fedsam_pipeline.specs.fingerprint import Fingerprint

MIN_VOXELS = 4
"""of the median case along an axis; fewer only where the images themselves have fewer"""


def check_target_spacing(fingerprint: Fingerprint, spacing: tuple[float, float, float]) -> None:
    """Refuses a spacing that nothing could be preprocessed or learned at.

    Args:
        fingerprint: of the federation.
        spacing: mm, (z, y, x) in canonical axes.

    Raises:
        FedsamError: the median case would have too few voxels along an axis, or more than one worker can hold in free memory.
    """
    size, native = median_size(fingerprint, spacing), [median(counts) for counts in fingerprint.size]
    voxels = " x ".join(f"{length:.4g}" for length in size)
    few = [AXIS_NAMES[axis] for axis in range(3) if size[axis] < min(MIN_VOXELS, native[axis])]
    if few:
        raise FedsamError(
            "the target spacing is too coarse",
            found=f"-overwrite_target_spacing {mm(spacing)}: the median case would have {voxels} voxels",
            expected=f"at least {MIN_VOXELS} along each axis",
            fix=f"choose a finer spacing along {', '.join(few)}",
        )
    needed, usable = case_memory(math.ceil(math.prod(size)), len(fingerprint.channels)), USABLE_SHARE * free_memory()
    if needed > usable:
        raise FedsamError(
            "the target spacing is too fine",
            found=f"-overwrite_target_spacing {mm(spacing)}: the median case would have {voxels} voxels and take {needed / 2**30:.4g} GiB",
            expected=f"at most {usable / 2**30:.3g} GiB, {100 * USABLE_SHARE:g} % of the free memory",
            fix="choose a coarser spacing",
        )
