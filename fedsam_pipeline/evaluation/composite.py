"""The score of FLamby's Fed-KiTS19, for comparison with its tables.

J. Ogier du Terrail et al., FLamby (NeurIPS 2022 Datasets and Benchmarks, arXiv:2210.04620), ``fed_kits19/metric.py``: the mean of two Dice
values, of kidney and tumor together and of tumor alone. A mask that is empty in both counts 0 there, and here.
"""

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.evaluation.metrics import counts, dice_from_counts

KIDNEY, TUMOR = 1, 2
GROUPS = ((KIDNEY, TUMOR), (TUMOR,))
RULE = (
    "Fed-KiTS composite (FLamby): mean of the Dice of kidney and tumor together (values 1, 2) and of tumor alone (value 2), a case at a "
    "time, on the masks' own grid (FLamby: a batch of resampled patches); absent in both = 0, as FLamby counts it; mean over cases, then "
    "unweighted over sites"
)


def fed_kits(reference: NDArray[np.integer], prediction: NDArray[np.integer], *, ignore: int | None = None) -> float:
    """The composite of one case.

    Args:
        reference: label values 0, 1 (kidney), 2 (tumor), any shape.
        prediction: the same shape.
        ignore: voxels of the reference with this value are left out.

    Raises:
        ValueError: different shapes, or other values.
    """
    dice = dice_from_counts(counts(reference, prediction, TUMOR + 1, groups=GROUPS, ignore=ignore))
    return float(np.nan_to_num(dice, nan=0.0).mean())
