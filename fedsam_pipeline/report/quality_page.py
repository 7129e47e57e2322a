"""The table of a quality control as one self-contained HTML page: the worst first, sorted anew by a click on a column's head."""

import html
from collections.abc import Sequence

from fedsam_pipeline.report.page import STYLE
from fedsam_pipeline.specs.quality import QualityRow, QualityTable, lowest

PAGE_STYLE = """
body { max-width: 82rem; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; } th[aria-sort=descending] button::after { content: " \\2193"; }
tr.flagged td:first-child { border-left: 3px solid #d55e00; } td:first-child, th:first-child { padding-left: .6rem; min-width: 8rem; }
td ul { margin: 0; padding-left: 1.1rem; min-width: 16rem; }
"""
SCRIPT = """
document.querySelectorAll('th button').forEach(function (button) {
  button.addEventListener('click', function () {
    var head = button.parentNode, place = Array.prototype.indexOf.call(head.parentNode.children, head);
    var down = head.getAttribute('aria-sort') === 'ascending' ||
      (head.getAttribute('aria-sort') !== 'descending' && head.dataset.first === 'descending');
    head.parentNode.querySelectorAll('th').forEach(function (other) { other.removeAttribute('aria-sort'); });
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    var body = document.querySelector('tbody'), rows = Array.prototype.slice.call(body.children);
    rows.sort(function (a, b) {
      var x = a.children[place].dataset.value, y = b.children[place].dataset.value;
      if (x === '' || y === '') { return (x === '') - (y === ''); }
      var order = head.dataset.kind === 'text' ? (x < y ? -1 : x > y ? 1 : 0) : x - y;
      return down ? -order : order;
    });
    rows.forEach(function (row) { body.appendChild(row); });
  });
});
"""
NONE_KNOWN = "-"

Cell = tuple[str, str]
"""what it is sorted by, and its HTML"""


def quality_page(table: QualityTable, title: str) -> str:
    """The page.

    Args:
        table: its cases in their order.
        title: of the page: the folder's name.
    """
    flagged = sum(bool(row.flags) for row in table.cases)
    channels = list(dict.fromkeys(name for row in table.cases for name in row.outside))
    heads = "".join(_head(*column, sorted_now=column[0] == "severity") for column in _columns(channels))
    lines = "\n".join(_line(row, channels) for row in table.cases)
    limits = ", ".join(f"{name} {value:g}" for name, value in table.limits.items())
    body = (
        f"<header><h1>Quality control</h1><p class='muted'>{html.escape(title)}</p></header>\n"
        f"<ul class='facts'><li><b>{flagged}</b><span>flagged</span></li><li><b>{len(table.cases)}</b><span>cases</span></li></ul>\n"
        "<p>The worst cases stand first. Severity is the worst measure of a case beside its limit: 1 is the limit, above it the case is "
        "flagged. Of Dice, the lowest class counts; of spacing and extent, the sorted column goes by the first axis.</p>\n"
        f"<div class='scroll'><table><thead><tr>{heads}</tr></thead><tbody>\n{lines}\n</tbody></table></div>\n"
        f"<footer><p class='muted'>Limits: {html.escape(limits)}. A case without a flag may be wrong all the same. "
        "Made by fedsam-pipeline. Not a medical device.</p></footer>"
    )
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Quality control: {html.escape(title)}</title><style>{STYLE}{PAGE_STYLE}</style>"
    )
    return f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head>\n<body>\n{body}\n<script>{SCRIPT}</script>\n</body></html>\n"


def _columns(channels: Sequence[str]) -> list[tuple[str, str, str]]:
    """Words, what it is sorted as, and how the first click sorts."""
    return [
        ("case", "text", "ascending"),
        ("severity", "number", "descending"),
        ("flags", "number", "descending"),
        ("Dice between folds", "number", "ascending"),
        ("Dice between mirrored images", "number", "ascending"),
        *((f"{name} intensities not covered", "number", "descending") for name in channels),
        ("spacing z, y, x (mm)", "number", "descending"),
        ("extent z, y, x (mm)", "number", "descending"),
        ("foreground voxels", "number", "ascending"),
    ]


def _head(words: str, kind: str, first: str, *, sorted_now: bool) -> str:
    now = f" aria-sort='{first}'" if sorted_now else ""
    return f"<th scope='col' data-kind='{kind}' data-first='{first}'{now}><button>{html.escape(words)}</button></th>"


def _line(row: QualityRow, channels: Sequence[str]) -> str:
    flags = "".join(f"<li>{html.escape(words)}</li>" for words in row.flags)
    cells = [
        (row.case, html.escape(row.case)),
        _number(row.severity, f"{row.severity:.2f}"),
        (str(len(row.flags)), f"<ul>{flags}</ul>" if flags else ""),
        _dice(row.folds_dice),
        _dice(row.mirrors_dice),
        *(_share(row.outside.get(name)) for name in channels),
        _number(row.spacing[0], _lengths(row.spacing)),
        _number(row.extent[0], _lengths(row.extent)),
        _number(row.foreground_voxels, f"{row.foreground_voxels:,}"),
    ]
    labels = [words for words, _, _ in _columns(channels)]
    tds = "".join(
        f"<td data-label='{html.escape(words)}' data-value='{html.escape(value)}'>{shown}</td>"
        for words, (value, shown) in zip(labels, cells, strict=True)
    )
    return f"<tr{' class=flagged' if row.flags else ''}>{tds}</tr>"


def _dice(dice: dict[str, float | None]) -> Cell:
    value = lowest(dice)
    return ("", NONE_KNOWN) if value is None else _number(value, f"{value:.2f}")


def _share(value: float | None) -> Cell:
    return ("", NONE_KNOWN) if value is None else _number(value, f"{value:.1%}")


def _number(value: float, shown: str) -> Cell:
    return f"{value:.9g}", html.escape(shown)


def _lengths(lengths: Sequence[float]) -> str:
    return ", ".join(f"{length:.3g}" for length in lengths)
