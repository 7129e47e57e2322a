"""Every metric of one case, class by class, and what each says of empty masks.

Volumes: a class's voxels times the volume of a voxel, in ml. The signed errors, predicted minus reference, in ml and relative to the
reference (as in SLIVER07: Heimann et al., IEEE Trans. Med. Imaging 2009), average to a bias; their absolute values average to an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.evaluation.lesions import DEFAULT_IOU, count_lesions
from fedsam_pipeline.evaluation.surface import mask_pairs, surface_distances
from fedsam_pipeline.evaluation.surface_dice import surface_dice

DEFAULT_TOLERANCES = (2.0,)
"""mm, of NSD. One number for all classes, on purpose independent of the images: figures of two data sets can be compared"""
MM3_PER_ML = 1000
EXCLUDED, NO_VALUE = "excluded", "no value, counted as missing"
MISSED, INVENTED = "in the reference only", "in the prediction only"


@dataclass(frozen=True)
class Metric:
    """One metric as people read it.

    Attributes:
        name: its key in every file.
        unit: of its values; empty for a share or a ratio.
        what: its definition in words.
        missed: its value for a class that only the reference holds.
        invented: its value for a class that only the prediction holds. A class in neither mask is excluded from every metric.
    """

    name: str
    unit: str
    what: str
    missed: str
    invented: str


@dataclass(frozen=True)
class MetricSettings:
    """What a user may choose.

    Attributes:
        nsd_tolerances: mm, each above 0; NSD is given at each.
        lesion_iou: above 0, at most 1: from which IoU on two components are the same lesion.
    """

    nsd_tolerances: tuple[float, ...] = DEFAULT_TOLERANCES
    lesion_iou: float = DEFAULT_IOU

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All that are averaged, in the order of tables."""
        return (
            Metric("Dice", "", "2 TP / (2 TP + FP + FN) of voxels", "0", "0"),
            Metric("IoU", "", "TP / (TP + FP + FN) of voxels", "0", "0"),
            Metric("HD95", "mm", "95th percentile of both directed sets of surface distances pooled", NO_VALUE, NO_VALUE),
            Metric("ASSD", "mm", "mean of both directed sets of surface distances pooled", NO_VALUE, NO_VALUE),
            *(
                Metric(nsd_name(mm), "", f"share of both surfaces' area at most {mm:g} mm from the other (Nikolov et al. 2021)", "0", "0")
                for mm in self.nsd_tolerances
            ),
            Metric("VolumeError_ml", "ml", "predicted minus reference volume", "minus the volume", "the volume"),
            Metric("AbsVolumeError_ml", "ml", "absolute value of VolumeError_ml", "the volume", "the volume"),
            Metric("VolumeError_rel", "", "(predicted - reference) / reference volume", "-1", NO_VALUE),
            Metric("AbsVolumeError_rel", "", "absolute value of VolumeError_rel", "1", NO_VALUE),
            Metric(
                "LesionF1",
                "",
                "2 TP / (2 TP + FP + FN) of components (26 neighbours), matched one to one, as many as possible, where their IoU is at "
                f"least {self.lesion_iou:g}",
                "0",
                "0",
            ),
        )


def nsd_name(tolerance: float) -> str:
    """Such as ``NSD_2mm``."""
    return f"NSD_{tolerance:g}mm"


def measure(
    reference: NDArray[np.integer],
    prediction: NDArray[np.integer],
    groups: Sequence[Sequence[int]],
    spacing: Sequence[float],
    settings: MetricSettings,
    *,
    ignore: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """All metrics but Dice and IoU, which are scored from counts.

    Args:
        reference: label values (Z, Y, X).
        prediction: the same shape.
        groups: the values that make up each class or region.
        spacing: mm, ordered like the axes.
        settings: tolerances and thresholds.
        ignore: voxels of the reference with this value are background in both masks.

    Returns:
        Name to (G,) values in the order of ``groups``, NaN where there is none: the names of ``settings.metrics``, and what they are made
        of: ``RefVolume_ml``, ``PredVolume_ml``, ``LesionTP``, ``LesionFP``, ``LesionFN``.

    Raises:
        ValueError: different shapes.
    """
    voxel_ml = float(np.prod(spacing)) / MM3_PER_ML
    rows = []
    for one, other in mask_pairs(reference, prediction, groups, ignore=ignore):
        rows.append(_volumes(np.count_nonzero(one) * voxel_ml, np.count_nonzero(other) * voxel_ml))
        distances, lesions = surface_distances(one, other, spacing), count_lesions(one, other, settings.lesion_iou)
        surface = surface_dice(one, other, spacing, settings.nsd_tolerances).tolist()
        rows[-1] |= {
            "HD95": float("nan") if distances is None else distances.hd95(),
            "ASSD": float("nan") if distances is None else distances.assd(),
            **dict(zip(map(nsd_name, settings.nsd_tolerances), surface, strict=True)),
            "LesionF1": lesions.f1,
            "LesionTP": lesions.true_positives,
            "LesionFP": lesions.false_positives,
            "LesionFN": lesions.false_negatives,
        }
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def empty_mask_table(metrics: Sequence[Metric]) -> list[list[str]]:
    """Lines of cells, the header first: what each metric is where one mask or both lack the class; metrics that agree share a line."""
    agreeing: dict[tuple[str, str], list[str]] = {}
    for metric in metrics:
        agreeing.setdefault((metric.missed, metric.invented), []).append(metric.name)
    lines = [[", ".join(names), EXCLUDED, *rule] for rule, names in agreeing.items()]
    return [["where a class is", "in neither mask", MISSED, INVENTED], *lines]


def _volumes(reference: float, prediction: float) -> dict[str, float]:
    """ml; errors are NaN where both are empty, relative ones where the reference is."""
    error = prediction - reference if reference or prediction else float("nan")
    relative = error / reference if reference else float("nan")
    return {
        "RefVolume_ml": reference,
        "PredVolume_ml": prediction,
        "VolumeError_ml": error,
        "AbsVolumeError_ml": abs(error),
        "VolumeError_rel": relative,
        "AbsVolumeError_rel": abs(relative),
    }
