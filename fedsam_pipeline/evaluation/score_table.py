"""The scores of ``summary.json`` as text for a terminal and as CSV for a spreadsheet."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fedsam_pipeline.evaluation.scores import ALL_SITES, MEAN

Interval = Mapping[str, float | None]


def format_scores(summary: Mapping[str, Any]) -> str:
    """A row a metric: its mean with its interval, and a column a class; then the definitions and what empty masks count.

    Args:
        summary: with what ``scores.score_metrics`` made.
    """
    names = list(summary["labels"])
    rows = [["metric", "mean", f"{100 * summary['intervals']['level']:g} % interval", *names, "missing"]]
    for metric, scores in summary["scores"].items():
        row = scores[ALL_SITES]
        unit = summary["metrics"][metric]["unit"]
        label = metric if not unit or metric.endswith(f"_{unit}") else f"{metric} {unit}"
        missing = sum(scores["missing"].values())
        rows.append([label, *_cells(row[MEAN]), *(_cells(row["classes"][name])[0] for name in names), str(missing) if missing else "-"])
    if "fed_kits" in summary:
        rows.append(["Fed-KiTS composite", *_cells(summary["fed_kits"][ALL_SITES][MEAN]), *("" for _ in names), ""])
    table = _aligned(rows)
    rule = "-" * max(map(len, table))
    settings, intervals = summary["settings"], summary["intervals"]
    tolerances = ", ".join(f"{mm:g}" for mm in settings["nsd_tolerances_mm"])
    coarse = [
        f"{mm:g} mm is less than the longest voxel edge of {count} case(s): there NSD asks for equal surfaces along that axis"
        for mm, count in zip(settings["nsd_tolerances_mm"], settings["coarser_cases"], strict=True)
        if count
    ]
    return "\n".join(
        [
            table[0],
            rule,
            *table[1:],
            rule,
            f"intervals: {intervals['method']}; {intervals['resamples']} draws, seed {intervals['seed']}",
            f"NSD at {tolerances} mm (--nsd_tolerance); components are one lesion from IoU {settings['lesion_iou']:g} on (--lesion_iou)",
            *coarse,
            *(f"{metric}: {entry['what']}" for metric, entry in summary["metrics"].items()),
            *([summary["fed_kits"]["rule"]] if "fed_kits" in summary else []),
            "",
            *_aligned(summary["empty_masks"]),
        ]
    )


def cases_csv(summary: Mapping[str, Any]) -> str:
    """One line a case and class, one column a metric; empty where there is no value."""
    metrics = list(next(iter(summary["metric_per_case"][0]["metrics"].values())))
    composite = ["fed_kits"] if "fed_kits" in summary else []
    header = ["case", "site", "class", *metrics, *composite]
    lines = []
    for row in summary["metric_per_case"]:
        for name, key in summary["labels"].items():
            values = row["metrics"][str(key)]
            lines.append([row["case"], row["site"], name, *(values[metric] for metric in metrics), *(row[key] for key in composite)])
    return _csv([header, *lines])


def scores_csv(summary: Mapping[str, Any]) -> str:
    """One line a metric, site and class, with its interval; site and class are ``mean`` in the lines of their means."""
    lines: list[Sequence[Any]] = [["metric", "unit", "site", "class", "value", "low", "high"]]
    for metric, scores in summary["scores"].items():
        unit = summary["metrics"][metric]["unit"]
        for site, row in [(MEAN, scores[ALL_SITES]), *scores["sites"].items()]:
            for name, entry in [(MEAN, row[MEAN]), *row["classes"].items()]:
                lines.append([metric, unit, site, name, entry["value"], entry["low"], entry["high"]])
    if "fed_kits" in summary:
        composite = summary["fed_kits"]
        for site, row in [(MEAN, composite[ALL_SITES]), *composite["sites"].items()]:
            lines.append(["fed_kits", "", site, MEAN, *(row[MEAN][key] for key in ("value", "low", "high"))])
    return _csv(lines)


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


def _cells(interval: Interval) -> tuple[str, str]:
    """Value, and both ends."""
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    return _cell(value), "-" if low is None or high is None else f"{_cell(low)} to {_cell(high)}"


def _cell(value: float | None) -> str:
    """Four places, two from 10 on."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
