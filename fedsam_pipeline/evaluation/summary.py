"""From counts of cases to the Dice of classes, sites and the federation.

The order of the means is fixed (``metrics.RULE``): over the cases of a site, then over classes, then unweighted over sites, so that a
large hospital does not outvote a small one. NaN (a class absent in both masks) is left out of every mean, and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.evaluation import surface
from fedsam_pipeline.evaluation.metrics import RULE, dice_from_counts, iou_from_counts

SCHEMA_VERSION = 1
Annotated = NDArray[np.bool_]


@dataclass(frozen=True)
class SiteDice:
    """Dice of one site, or of all of them together.

    Attributes:
        classes: (K - 1,) mean Dice of each foreground class; NaN where no case counted.
        dice: their mean; NaN where no class counted.
        num_cases: cases that were scored.
        absent: (K - 1,) cases that were left out because the class was absent in both masks.
        excluded: (K - 1,) cases that were left out because their site did not annotate the class; ``None`` where every class was
            annotated everywhere.
    """

    classes: NDArray[np.float64]
    dice: float
    num_cases: int
    absent: NDArray[np.int64]
    excluded: NDArray[np.int64] | None = None

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """JSON values, NaN as ``None``; ``class_names`` are the K - 1 foreground names in order. ``excluded`` stands where it is known."""
        value: dict[str, Any] = {
            "classes": {name: _number(dice) for name, dice in zip(class_names, self.classes, strict=True)},
            "dice": _number(self.dice),
            "num_cases": self.num_cases,
            "absent": {name: int(count) for name, count in zip(class_names, self.absent, strict=True)},
        }
        if self.excluded is not None:
            value["excluded"] = {name: int(count) for name, count in zip(class_names, self.excluded, strict=True)}
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], class_names: Sequence[str]) -> Self:
        """The inverse of :meth:`to_dict`. Raises ``KeyError`` where a class or a key is missing."""
        return cls(
            classes=np.array([_float(value["classes"][name]) for name in class_names]),
            dice=_float(value["dice"]),
            num_cases=int(value["num_cases"]),
            absent=_counts(value["absent"], class_names),
            excluded=_counts(value["excluded"], class_names) if "excluded" in value else None,
        )


@dataclass(frozen=True)
class CaseScore:
    """One scored case.

    Attributes:
        case, site: names.
        reference_file, prediction_file: the two masks.
        counts: (K - 1, 3) TP, FP, FN.
        num_voxels: ignored ones left out.
        hd95: (K - 1,) mm; NaN where a mask is empty.
        annotated: (K - 1,) whether its site annotated the class; ``None``: all of them.
        further: more values by name, (K - 1,) each, such as those of ``case_metrics.measure``.
        spacing: mm, (z, y, x); ``None`` where nobody asks.
        fed_kits: FLamby's composite (``composite.fed_kits``), NaN where the site did not annotate both classes; ``None``: not asked for.
    """

    case: str
    site: str
    reference_file: str
    prediction_file: str
    counts: NDArray[np.int64]
    num_voxels: int
    hd95: NDArray[np.float64]
    annotated: Annotated | None = None
    further: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None
    fed_kits: float | None = None

    @property
    def scored_hd95(self) -> NDArray[np.float64]:
        """``hd95``, NaN for classes that the site did not annotate."""
        return self.hd95 if self.annotated is None else np.where(self.annotated, self.hd95, np.nan)

    @property
    def missing(self) -> Annotated:
        """(K - 1,) whether a class is absent in one of the masks only, so that there is no distance."""
        positives, errors = self.counts[:, 0], self.counts[:, 1:]
        one_empty: Annotated = (positives == 0) & ((errors > 0).sum(axis=1) == 1)
        return one_empty if self.annotated is None else one_empty & self.annotated


def summarize_site(cases: Sequence[NDArray[np.integer]], annotated: Annotated | None = None) -> SiteDice:
    """Mean over cases, then over classes.

    Args:
        cases: one table (K - 1, 3) of counts a case, at least one.
        annotated: (K - 1,) boolean, the classes that the site annotated; the others are not scored. ``None`` for all.

    Raises:
        ValueError: no case.
    """
    if not cases:
        raise ValueError("a site without scored cases has no Dice")
    dice = dice_from_counts(np.stack(cases))
    absent, excluded = np.isnan(dice).sum(axis=0), None
    if annotated is not None:
        dice[:, ~annotated] = np.nan
        absent, excluded = np.where(annotated, absent, 0), np.where(annotated, 0, len(cases))
    classes = _nanmean(dice, axis=0)
    return SiteDice(classes, float(_nanmean(classes)), len(cases), absent, excluded)


def combine_sites(sites: Mapping[str, SiteDice]) -> SiteDice:
    """Unweighted mean over sites.

    ``dice`` is the mean of the sites' ``dice``; each class is the mean of that class over sites. Where a site has no Dice it is left out.

    Raises:
        ValueError: no site.
    """
    if not sites:
        raise ValueError("there is no site to combine")
    ordered = [sites[name] for name in sorted(sites)]
    excluded = [site.excluded for site in ordered if site.excluded is not None]
    return SiteDice(
        classes=_nanmean(np.stack([site.classes for site in ordered]), axis=0),
        dice=float(_nanmean(np.array([site.dice for site in ordered]))),
        num_cases=sum(site.num_cases for site in ordered),
        absent=np.sum([site.absent for site in ordered], axis=0),
        excluded=np.sum(excluded, axis=0) if excluded else None,
    )


def summarize_distances(cases: Sequence[CaseScore], class_names: Sequence[str]) -> dict[str, Any]:
    """HD95 (``surface.RULE``) of every site and of all together, in mm, NaN as ``None``.

    Args:
        cases: scored cases, at least one.
        class_names: the K - 1 foreground names in order.

    Returns:
        ``{"sites": {SITE: row}, "all_sites": row}``, a row ``{"classes": {NAME: mm}, "hd95": mm, "missing": {NAME: cases}}``: ``hd95`` is
        the mean of the classes, of all sites the unweighted mean of the sites.
    """
    sites = sorted({score.site for score in cases})
    classes, missing = [], []
    for site in sites:
        of_site = [score for score in cases if score.site == site]
        classes.append(_nanmean(np.stack([score.scored_hd95 for score in of_site]), axis=0))
        missing.append(np.sum([score.missing for score in of_site], axis=0))
    means = np.array([float(_nanmean(row)) for row in classes])

    def row(values: NDArray[np.float64], mean: float, counts: NDArray[np.int64]) -> dict[str, Any]:
        return {
            "classes": {name: _number(float(value)) for name, value in zip(class_names, values, strict=True)},
            "hd95": _number(mean),
            "missing": {name: int(count) for name, count in zip(class_names, counts, strict=True)},
        }

    return {
        "sites": {site: row(*values) for site, values in zip(sites, zip(classes, means.tolist(), missing, strict=True), strict=True)},
        "all_sites": row(_nanmean(np.stack(classes), axis=0), float(_nanmean(means)), np.sum(missing, axis=0)),
    }


def summarize(cases: Sequence[CaseScore], class_names: Sequence[str], keys: Sequence[int | str] | None = None) -> dict[str, Any]:
    """The content of ``summary.json``: nnU-Net's keys, and ours beside them.

    nnU-Net's ``mean`` and ``foreground_mean`` weigh all cases equally, whatever their site; ``sites`` and ``dice`` follow the rule of this
    package. NaN is ``None``.

    Args:
        cases: the scored cases, in any order; those of a site with the same ``annotated``.
        class_names: names of what was counted, such as the foreground classes in order of their values 1, 2, ...
        keys: what they are called in nnU-Net's part of the summary; ``None``: 1, 2, ...

    Raises:
        ValueError: no case.
    """
    ordered = sorted(cases, key=lambda score: (score.site, score.case))
    by_site: dict[str, list[CaseScore]] = {}
    for score in ordered:
        by_site.setdefault(score.site, []).append(score)
    sites = {name: summarize_site([score.counts for score in scores], scores[0].annotated) for name, scores in by_site.items()}
    together = combine_sites(sites)
    labels = dict(zip(class_names, keys or range(1, len(class_names) + 1), strict=True))
    values = [_case_metrics(score, list(labels.values())) for score in ordered]
    mean = {label: _mean_metrics([value[label] for value in values]) for label in values[0]}
    return {
        "schema_version": SCHEMA_VERSION,
        "rule": RULE,
        "labels": labels,
        "dice": _number(together.dice),
        "all_sites": together.to_dict(class_names),
        "sites": {name: site.to_dict(class_names) for name, site in sites.items()},
        "hd95_rule": surface.RULE,
        "hd95": summarize_distances(ordered, class_names),
        "foreground_mean": _json(_mean_metrics(list(mean.values()))),
        "mean": {label: _json(row) for label, row in mean.items()},
        "metric_per_case": [
            {
                "case": score.case,
                "site": score.site,
                "reference_file": score.reference_file,
                "prediction_file": score.prediction_file,
                **({} if score.fed_kits is None else {"fed_kits": _number(score.fed_kits)}),
                "metrics": {label: _json(row) for label, row in value.items()},
            }
            for score, value in zip(ordered, values, strict=True)
        ],
    }


def format_table(summary: Mapping[str, Any]) -> str:
    """The Dice table of a summary as text: a row a site and one for their mean, a column a class and one for their mean.

    Where the summary knows HD95, its mean over classes is one more column.
    """
    names = list(summary["labels"])
    distances = summary.get("hd95")
    header = ["site", "cases", *names, "mean", *([] if distances is None else ["HD95 mm"])]
    rows = [(name, summary["sites"][name]) for name in sorted(summary["sites"])]
    rows.append(("mean", summary["all_sites"]))
    lines = [[name, str(row["num_cases"]), *(_cell(row["classes"][n]) for n in names), _cell(row["dice"])] for name, row in rows]
    if distances is not None:
        for line, row in zip(lines, [*(distances["sites"][name] for name, _ in rows[:-1]), distances["all_sites"]], strict=True):
            line.append("-" if row["hd95"] is None else f"{row['hd95']:.2f}")
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(line: Sequence[str]) -> str:
        return "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])

    rule = "-" * len(text(header))
    notes = [summary["rule"]]
    for key, words in (("absent", "absent in both masks, not counted"), ("excluded", "not annotated by their site, not scored")):
        left_out = ", ".join(f"{name} {count}" for name, count in summary["all_sites"].get(key, {}).items() if count)
        notes += [f"{words} (cases): {left_out}"] if left_out else []
    if distances is not None:
        missing = ", ".join(f"{name} {count}" for name, count in distances["all_sites"]["missing"].items() if count)
        notes += [summary["hd95_rule"], *([f"absent in one mask, no distance (cases): {missing}"] if missing else [])]
    return "\n".join([text(header), rule, *map(text, lines[:-1]), rule, text(lines[-1]), *notes])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _case_metrics(score: CaseScore, keys: Sequence[int | str]) -> dict[str, dict[str, float]]:
    """nnU-Net's metrics of one case and ours, by label value; NaN, all of them, for a class that its site did not annotate."""
    dice, iou = dice_from_counts(score.counts), iou_from_counts(score.counts)
    result: dict[str, dict[str, float]] = {}
    for index, (tp, fp, fn) in enumerate(score.counts.tolist()):
        true_negatives = score.num_voxels - tp - fp - fn
        row = {"Dice": float(dice[index]), "IoU": float(iou[index]), "TP": tp, "FP": fp, "FN": fn, "TN": true_negatives}
        row |= {"n_pred": tp + fp, "n_ref": tp + fn, "HD95": float(score.hd95[index])}
        row |= {name: float(values[index]) for name, values in score.further.items()}
        if score.annotated is not None and not score.annotated[index]:
            row = dict.fromkeys(row, float("nan"))
        result[str(keys[index])] = row
    return result


def _mean_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(_nanmean(np.array([row[key] for row in rows], dtype=np.float64))) for key in rows[0]}


def _json(row: Mapping[str, float]) -> dict[str, float | None]:
    return {key: _number(value) for key, value in row.items()}


def _nanmean(values: NDArray[np.float64], axis: int | None = None) -> NDArray[np.float64]:
    """``np.nanmean`` that answers NaN for nothing but NaN without a warning."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _counts(value: Mapping[str, Any], class_names: Sequence[str]) -> NDArray[np.int64]:
    return np.array([int(value[name]) for name in class_names], dtype=np.int64)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)
