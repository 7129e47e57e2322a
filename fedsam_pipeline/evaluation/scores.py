"""Every metric of a set of cases: means by the rule of ``metrics.RULE`` with bootstrap intervals, by class and site.

The order of the means is that of Dice everywhere: over the cases of a site, then over classes, then unweighted over sites. A value that
does not exist is left out of the mean and counted: ``case_metrics`` says where that is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.evaluation import composite
from fedsam_pipeline.evaluation.case_metrics import MetricSettings, empty_mask_table
from fedsam_pipeline.evaluation.intervals import LEVEL, RESAMPLES, SEED, Interval, bootstrap_means, site_means
from fedsam_pipeline.evaluation.metrics import dice_from_counts, iou_from_counts
from fedsam_pipeline.evaluation.summary import CaseScore

METHOD = "percentile bootstrap over cases, within each site; none for fewer than two cases"
MEAN = "mean"
ALL_SITES = "all_sites"
Values = NDArray[np.float64]


def score_metrics(cases: Sequence[CaseScore], class_names: Sequence[str], settings: MetricSettings) -> dict[str, Any]:
    """What ``summary.json`` adds to ``summary.summarize`` for measured cases.

    Args:
        cases: scored cases with ``further`` of ``case_metrics.measure`` under the same ``settings``, at least one.
        class_names: the K foreground names, or regions, in order.
        settings: tolerances and thresholds.

    Returns:
        JSON values: ``metrics`` (each with its definition), ``empty_masks``, ``settings``, ``intervals`` (how they were made), ``scores``
        and, where the cases have it, ``fed_kits``.
    """
    ordered = sorted(cases, key=lambda score: (score.site, score.case))
    sites = [score.site for score in ordered]
    present = np.stack([score.counts.sum(axis=1) > 0 for score in ordered])
    annotated = np.stack([np.ones(len(class_names), dtype=bool) if score.annotated is None else score.annotated for score in ordered])
    table = {metric.name: np.where(annotated, _values(ordered, metric.name), np.nan) for metric in settings.metrics}
    found: dict[str, Any] = {
        "metrics": {metric.name: {"unit": metric.unit, "what": metric.what} for metric in settings.metrics},
        "empty_masks": empty_mask_table(settings.metrics),
        "settings": {
            "nsd_tolerances_mm": list(settings.nsd_tolerances),
            "coarser_cases": [
                sum(score.spacing is not None and max(score.spacing) > mm for score in cases) for mm in settings.nsd_tolerances
            ],
            "lesion_iou": settings.lesion_iou,
        },
        "intervals": {"method": METHOD, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "scores": {},
    }
    for name, values in table.items():
        missing = present & annotated & np.isnan(values)
        found["scores"][name] = _with_intervals(values, sites, class_names) | {
            "missing": {label: int(count) for label, count in zip(class_names, missing.sum(axis=0), strict=True)}
        }
    if ordered[0].fed_kits is not None:
        values = np.array([[score.fed_kits] for score in ordered], dtype=np.float64)
        rows = _with_intervals(values, sites, ())
        found["fed_kits"] = {"rule": composite.RULE} | {place: rows[place] for place in (ALL_SITES, "sites")}
    return found


def _values(cases: Sequence[CaseScore], metric: str) -> Values:
    """(N, K) of one metric, whether annotated or not."""
    of_counts = {"Dice": dice_from_counts, "IoU": iou_from_counts}
    if metric in of_counts:
        return of_counts[metric](np.stack([score.counts for score in cases]))
    return np.stack([score.hd95 if metric == "HD95" else score.further[metric] for score in cases])


def _with_intervals(values: Values, sites: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
    """``{"all_sites": row, "sites": {SITE: row}}``, a row ``{"mean": interval, "classes": {NAME: interval}}``.

    Args:
        values: (N, K) of one metric.
        sites: (N,) site of each case.
        class_names: K names, or none where the rows shall have no classes.
    """
    owner, names = np.array(sites), sorted(set(sites))
    result: dict[str, Any] = {ALL_SITES: {}, "sites": {site: {} for site in names}}
    for columns, stacked in ((None, values[None]), (class_names, values.T[:, :, None])):
        if columns == ():
            continue
        means, draws = site_means(stacked, sites), bootstrap_means(stacked, sites)
        known: NDArray[np.bool_] = ~np.all(np.isnan(stacked), axis=2)
        counted = np.stack([known[:, owner == site].sum(axis=1) for site in names], axis=-1)
        places = [(result[ALL_SITES], means.mean, draws.mean, counted.max(axis=1))]
        places += [
            (result["sites"][site], means.by_site[:, index], draws.by_site[:, :, index], counted[:, index])
            for index, site in enumerate(names)
        ]
        for place, value, drawn, cases in places:
            entries = [_interval(value[row], drawn[:, row], cases[row]) for row in range(len(stacked))]
            if columns is None:
                place[MEAN] = entries[0]
            else:
                place["classes"] = dict(zip(columns, entries, strict=True))
    return result


def _interval(value: np.float64, draws: Values, cases: int) -> dict[str, float | None]:
    """Of fewer than two cases nothing can be drawn."""
    return (Interval.of_draws(float(value), draws) if cases > 1 else Interval(float(value), float("nan"), float("nan"))).to_dict()
