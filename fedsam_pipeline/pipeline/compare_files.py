"""A comparison as files: JSON, CSV for a spreadsheet, Markdown for people, a plot."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsam_pipeline.files import write_bytes, write_json, write_text
from fedsam_pipeline.report.tradeoff import tradeoff_png

NOTHING = "-"


def write_comparison(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes ``comparison.json``, ``.csv``, ``.md`` and ``.png`` into ``folder``, each atomically."""
    write_json(folder / "comparison.json", record)
    write_bytes(folder / "comparison.csv", comparison_csv(record).encode("utf-8"))
    write_text(folder / "comparison.md", comparison_markdown(record) + "\n")
    tradeoff_png(record, folder / "comparison.png")


def comparison_csv(record: Mapping[str, Any]) -> str:
    """One line a method, one column a number; empty where there is none. Lengths in mm, sizes in bytes, times in seconds."""
    stream = io.StringIO()
    rows = [_flat(method) for method in record["methods"]]
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(stream, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def comparison_markdown(record: Mapping[str, Any]) -> str:
    """The tables, and what has to be known to read them."""
    methods = record["methods"]
    sites = sorted(record["cases"])
    several = any(method["seeds"] > 1 for method in methods)
    best = record["best"]
    head = ["method", *sites, "mean [95 %]", "worst site", "minus first [95 %]", f"minus best ({best}) [95 %]"]
    dice = [
        [
            method["name"],
            *(_number(method["dice"]["sites"][site]["value"], 4) for site in sites),
            _interval(method["dice"]["mean"], 4),
            _worst(method["dice"]["worst"], 4),
            _interval(method["difference_to_reference"]["dice"], 4, sign=True),
            _interval(method["difference_to_best"]["dice"], 4, sign=True),
            *([_number(method["dice"]["seed_sd"], 4)] if several else []),
        ]
        for method in methods
    ]
    distance = [
        [
            method["name"],
            *(_number(method["hd95"]["sites"][site]["value"], 2) for site in sites),
            _interval(method["hd95"]["mean"], 2),
            _worst(method["hd95"]["worst"], 2),
            _interval(method["difference_to_reference"]["hd95"], 2, sign=True),
            f"{method['hd95']['missing']:g}",
        ]
        for method in methods
    ]
    cost = [
        [
            method["name"],
            *(_megabytes(method, key) for key in ("up_per_round", "down_per_round", "per_round")),
            _times(method),
            _megabytes(method, "total"),
            f"{method['seconds'] / 60:.1f}",
            NOTHING if method["peak_memory_bytes"] is None else f"{method['peak_memory_bytes'] / 2**30:.2f}",
        ]
        for method in methods
    ]
    counted = ", ".join(f"{site} {count}" for site, count in record["cases"].items())
    parts = [
        f"# {record['dataset']}, fold {record['fold']}",
        f"{record['base_model']}, plans {record['plans_name']}; {record['rounds']} rounds of {record['local_steps']} steps a site "
        f"({record['steps_a_site']} steps; centralized takes those of all sites). Cases: {counted}; on the images' own grid.",
        "## Dice",
        _table([*head, *(["SD of seeds"] if several else [])], dice),
        "## HD95 (mm)",
        _table(["method", *sites, "mean [95 %]", "worst site", "minus first [95 %]", "missing"], distance),
        "## Cost",
        _table(["method", "MB up a round", "MB down a round", "MB a round", "first / this", "MB in all", "minutes", "GiB a worker"], cost),
        *_against_local(methods, sites),
        *_elsewhere(methods, sites),
        "## Reading",
        "\n".join(
            f"- {line}"
            for line in (
                record["rule"],
                record["hd95_rule"],
                f"Intervals: {record['intervals']['method']}.",
                f"First: {record['reference']}. Best: the highest mean Dice of those that exchange updates (of all, if none does), so "
                "chosen on these very cases.",
                "MB: 10^6 bytes of Flower messages as measured, all sites together; leave_one_site_out: mean of its runs. "
                "First / this: so many times fewer bytes a round than the first. In all: both directions, every round and what "
                "is asked after the last. Nothing travels under local; centralized moves the images.",
                "Minutes: training, all runs of a seed one after the other. GiB: peak of the largest worker process.",
                *record["notes"],
                *(f"FAILED {failure['run']}: {' '.join(failure['reason'].split())}" for failure in record["failures"]),
            )
        ),
    ]
    return "\n\n".join(parts)


def _against_local(methods: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> list[str]:
    rows = [
        [method["name"], found["name"], *(_interval(found["dice"][site], 4, sign=True) for site in sites)]
        for method in methods
        if (found := method["difference_to_local"]) is not None
    ]
    return ["## Dice minus that of each site's own model [95 %]", _table(["method", "minus", *sites], rows)] if rows else []


def _elsewhere(methods: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> list[str]:
    rows = [
        [method["name"], site, *(_number(row[at], 4) for at in sites)] for method in methods for site, row in method["elsewhere"].items()
    ]
    return ["## Dice of each site's own model at every site", _table(["method", "trained at", *sites], rows)] if rows else []


def _flat(method: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        key: method[key] for key in ("name", "recipe", "protocol", "strategy", "wire", "learning_rate", "random_encoder", "seeds")
    }
    for score in ("dice", "hd95"):
        values = method[score]
        row |= {f"{score}_{site}": interval["value"] for site, interval in values["sites"].items()}
        row |= _ends(f"{score}_mean", values["mean"])
        row |= {f"{score}_worst": values["worst"]["value"], f"{score}_worst_site": values["worst"]["site"]}
        for word in ("reference", "best"):
            row |= _ends(f"{score}_minus_{word}", method[f"difference_to_{word}"][score])
    row |= {"dice_seed_sd": method["dice"]["seed_sd"], "hd95_missing": method["hd95"]["missing"]}
    row |= {f"bytes_{key}": (method["bytes"] or {}).get(key) for key in ("up_per_round", "down_per_round", "per_round", "total")}
    row["bytes_reference_over_this"] = (method["bytes"] or {}).get("reference_over_this")
    if (alone := method["difference_to_local"]) is not None:
        row |= {key: value for site, found in alone["dice"].items() for key, value in _ends(f"dice_minus_local_{site}", found).items()}
    return row | {key: method[key] for key in ("seconds", "peak_memory_bytes")}


def _ends(name: str, interval: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}


def _number(value: float | None, digits: int, *, sign: bool = False) -> str:
    return NOTHING if value is None else f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _interval(interval: Mapping[str, float | None], digits: int, *, sign: bool = False) -> str:
    if interval["value"] is None:
        return NOTHING
    value, low, high = (_number(interval[key], digits, sign=sign) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _worst(worst: Mapping[str, Any], digits: int) -> str:
    return NOTHING if worst["site"] is None else f"{worst['value']:.{digits}f} ({worst['site']})"


def _megabytes(method: Mapping[str, Any], key: str) -> str:
    return NOTHING if method["bytes"] is None else f"{method['bytes'][key] / 1e6:.3f}"


def _times(method: Mapping[str, Any]) -> str:
    ratio = (method["bytes"] or {}).get("reference_over_this")
    return NOTHING if ratio is None else f"{ratio:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[index]) for line in [head, *rows]) for index in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)
