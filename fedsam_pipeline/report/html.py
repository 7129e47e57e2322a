"""One self-contained HTML page about a trained run: no script, no network, legible on paper."""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json, write_text
from fedsam_pipeline.report.curves import dice_figure, progress_figure, round_records
from fedsam_pipeline.report.style import svg_bytes
from fedsam_pipeline.specs.plans import Plans

STYLE = """
:root { --ink: #1f2933; --muted: #6b7785; --line: #e3e8ee; --tint: #f6f8fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.5rem 4rem; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.muted, figcaption { color: var(--muted); font-size: .87rem; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.3rem 0 0; padding: 0; list-style: none; }
.facts li { flex: 1 1 8rem; padding: .7rem .9rem; background: var(--tint); border-left: 3px solid var(--accent); }
.facts b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.facts span { color: var(--muted); font-size: .82rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th { text-align: left; font-weight: 600; color: var(--muted); }
th, td { padding: .32rem .6rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.total td { font-weight: 600; border-top: 2px solid var(--ink); border-bottom: 0; }
code { font: .84rem ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
figure { margin: .8rem 0; break-inside: avoid; }
img { max-width: 100%; height: auto; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } .pictures figure { flex: 1 1 22rem; max-width: 30rem; margin: 0; }
.scroll { overflow-x: auto; }
@media print {
  @page { margin: 16mm; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  .facts li { background: none; border: 1px solid var(--line); border-left: 3px solid var(--ink); }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; } .scroll { overflow: visible; }
}
"""

Row = Sequence[str]


def write_report(
    run_folder: Path,
    *,
    summaries: Sequence[tuple[str, Mapping[str, Any]]] | None = None,
    overlays: Iterable[tuple[str, bytes]] = (),
    output: Path | None = None,
) -> Path:
    """Writes the report of one trained fold.

    Args:
        run_folder: a ``fold_K`` folder. ``plans.json``, ``progress.jsonl`` and ``run.json`` are read; a part whose file is missing says so.
        summaries: (title, content of ``summary.json``); ``None`` is the run's own ``validation/summary.json``, if it is there.
        overlays: (title, PNG bytes) of single cases; they show patients.
        output: the page; ``None`` is ``report.html`` in the run folder.

    Returns:
        The page.

    Raises:
        FedsamError: the folder is missing, or a file in it is broken.
    """
    if not run_folder.is_dir():
        raise FedsamError("the run folder is missing", path=run_folder, expected="a fold_K folder of a trained run", fix="check the path")
    records = _read_records(run_folder / "progress.jsonl")
    run = read_json(run_folder / "run.json") if (run_folder / "run.json").is_file() else {}
    plans = Plans.load(run_folder / "plans.json") if (run_folder / "plans.json").is_file() else None
    if summaries is None:
        own = run_folder / "validation" / "summary.json"
        summaries = [("Validation", read_json(own))] if own.is_file() else []
    title = " · ".join(run_folder.resolve().parts[-4:])
    headline = plans.dataset_name if plans else run_folder.name
    parts = [
        f"<header><h1>{html.escape(headline)}</h1><p class='muted'>{html.escape(title)}</p></header>",
        _facts(records, summaries),
        *[_dice_section(name, summary) for name, summary in summaries],
        _section("Learning curves", _curves(records)),
        _section("Cases", _pictures(overlays)),
        _section("Communication", _communication(records)),
        _section("Plan", _plan_table(plans) if plans else "<p>There is no plans.json in this run.</p>"),
        _section("Run and environment", _run_table(run)),
        "<footer><p class='muted'>Made by fedsam-pipeline. Not a medical device.</p></footer>",
    ]
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    page = f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head>\n<body>\n{body}\n</body></html>\n"
    path = run_folder / "report.html" if output is None else output
    write_text(path, page)
    return path


def _read_records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise FedsamError(
                "a line of the progress file is not JSON",
                path=path,
                found=f"line {number}: {error}",
                expected="one JSON object a line",
                fix="delete that line",
            ) from error
        records.append(record)
    return records


def _facts(records: Sequence[Mapping[str, Any]], summaries: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The figures that a reader wants first."""
    facts: list[tuple[str, str]] = []
    for name, summary in summaries:
        facts.append((_dice(summary["dice"]), f"{name}: Dice, mean of {len(summary['sites'])} site(s)"))
        scored = {site: row["dice"] for site, row in summary["sites"].items() if row["dice"] is not None}
        if len(scored) > 1:
            worst = min(scored, key=lambda site: scored[site])
            facts.append((_dice(scored[worst]), f"{name}: worst site, {worst}"))
    rounds = round_records(records)
    if rounds:
        facts.append((str(rounds[-1]["round"]), "rounds"))
        facts.append((_bytes(_total(rounds, "bytes_up") + _total(rounds, "bytes_down")), "sent, both ways"))
    items = "".join(f"<li><b>{html.escape(value)}</b><span>{html.escape(word)}</span></li>" for value, word in facts)
    return f"<ul class='facts'>{items}</ul>" if items else ""


def _dice_section(name: str, summary: Mapping[str, Any]) -> str:
    """Dice of sites and classes; the spread of the cases too, where the summary holds cases."""
    together = summary.get("all_sites")
    if together is None:
        return _section(f"{name}: Dice", "<p>No case was validated.</p>")
    classes = list(together["classes"])
    rows = [[site, str(row["num_cases"]), *_dice_cells(row, classes)] for site, row in sorted(summary["sites"].items())]
    rows.append(["mean of sites", str(together["num_cases"]), *_dice_cells(together, classes)])
    table = _table(["site", "cases", *classes, "mean"], rows, numbers_from=1, total=True)
    absent = ", ".join(f"{name} {count}" for name, count in together["absent"].items() if count)
    note = f" Absent in both masks (cases): {absent}." if absent else ""
    figure = ""
    if summary.get("metric_per_case"):
        figure = _figure(svg_bytes(dice_figure(summary)), "image/svg+xml", "Every dot is a case; boxes are quartiles, thick lines medians.")
    return _section(f"{name}: Dice", f"{table}<p class='muted'>{html.escape(summary['rule'] + '.' + note)}</p>{figure}")


def _dice_cells(row: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    return [_dice(row["classes"][name]) for name in classes] + [_dice(row["dice"])]


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    if not round_records(records):  # a final record alone would be a single point
        return "<p>No round has been finished yet.</p>"
    caption = "Lines: a few validation cases of each site, scored on the way. Diamonds: the final model on the whole fold."
    return _figure(svg_bytes(progress_figure(records)), "image/svg+xml", caption)


def _pictures(overlays: Iterable[tuple[str, bytes]]) -> str | None:
    figures = "".join(_figure(png, "image/png", caption) for caption, png in overlays)
    return f"<div class='pictures'>{figures}</div>" if figures else None


def _communication(records: Sequence[Mapping[str, Any]]) -> str | None:
    rounds = round_records(records)
    if not rounds:
        return None
    last = rounds[-1]
    sites = len(last.get("sites") or {}) or 1
    rows = [
        [
            "up (sites to server)",
            _bytes(_total(rounds, "bytes_up")),
            _bytes(last.get("bytes_up") or 0),
            _bytes((last.get("bytes_up") or 0) / sites),
        ],
        [
            "down (server to sites)",
            _bytes(_total(rounds, "bytes_down")),
            _bytes(last.get("bytes_down") or 0),
            _bytes((last.get("bytes_down") or 0) / sites),
        ],
    ]
    return _table(["direction", "whole run", "last round", "last round, a site"], rows, numbers_from=1)


def _plan_table(plans: Plans) -> str:
    """Every planned value beside its reason; values without a reason last."""
    flat = list(_flatten(plans.model_dump(mode="json", exclude={"why", "schema_version", "fingerprint_sha256"})))
    rows = [[f"<code>{html.escape(key)}</code>", html.escape(_value(value)), html.escape(plans.why.get(key, ""))] for key, value in flat]
    rows += [[f"<code>{html.escape(key)}</code>", "", html.escape(why)] for key, why in plans.why.items() if key not in dict(flat)]
    rows.sort(key=lambda row: row[2] == "")
    return _table(["value of", "is", "because"], rows, escaped=True)


def _run_table(run: Any) -> str:
    if not isinstance(run, dict) or not run:
        return "<p>There is no run.json in this run.</p>"
    rows = [[f"<code>{html.escape(key)}</code>", html.escape(_value(value))] for key, value in _flatten(run)]
    return _table(["what", "value"], rows, escaped=True)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested mappings as dotted names; empty ones are left out."""
    for key, value in values.items():
        if isinstance(value, dict) and prefix + key != "labels":
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _value(value: Any) -> str:
    """A JSON value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        items = [(key, item) for key, item in value.items() if item is not None]
        if all(isinstance(item, int) for _, item in items):  # labels by their values: files sort them by name
            items.sort(key=lambda pair: pair[1])
        return ", ".join(f"{key} {_value(item)}" for key, item in items)
    if isinstance(value, list):
        nested = any(isinstance(item, dict | list) for item in value)
        return ("; " if nested else ", ").join(_value(item) for item in value) or "none"
    return str(value)


def _section(title: str, body: str | None) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


def _table(header: Row, rows: Sequence[Row], *, numbers_from: int | None = None, total: bool = False, escaped: bool = False) -> str:
    """An HTML table. ``numbers_from`` is the first column of right-aligned numbers; ``total`` sets off the last row."""
    limit = len(header) if numbers_from is None else numbers_from

    def line(cells: Row, tag: str, raw: bool) -> str:
        return "".join(
            f"<{tag}{' class=number' if index >= limit else ''}>{cell if raw else html.escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )

    body = "".join(
        f"<tr{' class=total' if total and index == len(rows) - 1 else ''}>{line(row, 'td', escaped)}</tr>" for index, row in enumerate(rows)
    )
    return f"<div class='scroll'><table><thead><tr>{line(header, 'th', False)}</tr></thead><tbody>{body}</tbody></table></div>"


def _figure(content: bytes, media_type: str, caption: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    text = html.escape(caption)
    return f"<figure><img alt='{text}' src='data:{media_type};base64,{data}'><figcaption>{text}</figcaption></figure>"


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _total(rounds: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(int(record.get(key) or 0) for record in rounds)


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f} B"
