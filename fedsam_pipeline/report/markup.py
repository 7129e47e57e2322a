"""Pieces of the page: sections, tables, figures, lists, and numbers as people read them. Every text is escaped here, once."""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = Sequence[str]
NOTHING = "-"


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title: its heading.
        body: HTML made of the functions below.
    """

    title: str
    body: str

    @property
    def anchor(self) -> str:
        """Name that the table of contents leads to."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(words)}</p>"


def note(words: str) -> str:
    """A paragraph of small print: how numbers are made, what is missing."""
    return f"<p class='note'>{html.escape(words)}</p>"


def warning(words: str) -> str:
    """A paragraph that must not be overlooked."""
    return f"<p class='warning'>{html.escape(words)}</p>"


def heading(words: str) -> str:
    """A heading within a section."""
    return f"<h3>{html.escape(words)}</h3>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Figures with a few words each, the figure large."""
    items = "".join(f"<li><b>{html.escape(value)}</b> <span>{html.escape(words)}</span></li>" for value, words in pairs)
    return f"<ul class='facts'>{items}</ul>" if items else ""


def table(
    caption: str,
    header: Row,
    rows: Sequence[Row],
    *,
    kind: Literal["numbers", "words", "keys"] = "numbers",
    total: bool = False,
) -> str:
    """A table whose first column names the rows.

    On narrow screens every row becomes a block in which each cell stands beside its column's name, so nothing has to be scrolled sideways.
    The roles are written out because some browsers forget them where rows are laid out as blocks.

    Args:
        caption: what the table shows.
        header: names of the columns.
        rows: as many cells each; "" is an empty cell.
        kind: of all columns but the first: right-aligned numbers, or text; ``keys``: text, and the first column names keys of a document.
        total: set off the last row.
    """
    head = "".join(f"<th scope='col' role='columnheader'>{html.escape(name)}</th>" for name in header)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(
            f"<td role='cell' data-label='{html.escape(name)}'>{html.escape(cell)}</td>"
            for name, cell in zip(header[1:], row[1:], strict=True)
        )
        mark = " class='total'" if total and index == len(rows) - 1 else ""
        name = html.escape(row[0])
        if kind == "keys":  # keys of documents are long: they may go on in the next line behind a dot or an underscore
            name = re.sub(r"([._])(?=\w)", r"\1<wbr>", name)
        lines.append(f"<tr role='row'{mark}><th scope='row' role='rowheader'>{name}</th>{cells}</tr>")
    return (
        f"<table class='{'words keys' if kind == 'keys' else kind} of{len(header)}' role='table'><caption>{html.escape(caption)}</caption>"
        f"<thead role='rowgroup'><tr role='row'>{head}</tr></thead><tbody role='rowgroup'>{''.join(lines)}</tbody></table>"
    )


def figure(content: bytes, media_type: Literal["image/svg+xml", "image/png"], caption: str, alt: str) -> str:
    """A picture within the page.

    Args:
        content: bytes of the picture.
        media_type: of them.
        caption: text below it.
        alt: what the picture shows, for those who do not see it.
    """
    data = base64.b64encode(content).decode("ascii")
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure><img alt='{html.escape(alt)}' src='data:{media_type};base64,{data}'>{words}</figure>"


def side_by_side(figures: Sequence[str]) -> str:
    """Figures beside each other where there is room."""
    return f"<div class='figures'>{''.join(figures)}</div>" if figures else ""


def dice(value: float | None) -> str:
    """Four digits."""
    return NOTHING if value is None else f"{value:.4f}"


def num_bytes(value: float | None) -> str:
    """Bytes in decimal units: 1 MB is 10^6 bytes."""
    if value is None:
        return NOTHING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds below two minutes, minutes below two hours, then hours."""
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def value(found: Any) -> str:
    """A JSON value for people."""
    if found is None:
        return NOTHING
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return f"{found:.6g}"
    if isinstance(found, dict):
        items = [(key, item) for key, item in found.items() if item is not None]
        if all(isinstance(item, int) for _, item in items):  # labels by their values: files sort them by name
            items.sort(key=lambda pair: pair[1])
        return ", ".join(f"{key} {value(item)}" for key, item in items) or "none"
    if isinstance(found, list | tuple):
        nested = any(isinstance(item, dict | list | tuple) for item in found)
        return ("; " if nested else ", ").join(value(item) for item in found) or "none"
    return str(found)


def flatten(values: Mapping[str, Any], whole: Sequence[str] = (), prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested mappings as dotted names; those in ``whole`` stay in one piece, empty ones are left out."""
    for key, found in values.items():
        if isinstance(found, dict) and prefix + key not in whole:
            yield from flatten(found, whole, f"{prefix}{key}.")
        else:
            yield prefix + key, found
