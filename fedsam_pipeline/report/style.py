"""How all figures look: one palette, thin axes, no global state of matplotlib."""

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SITE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
"""Okabe and Ito's colour-blind-safe palette, extended; sites beyond repeat it with another line style"""
LINE_STYLES = ("-", "--", ":", "-.")
INK = "#1F2933"
MUTED = "#56606C"
GRID = "#E3E8EE"


def site_style(index: int) -> tuple[str, str]:
    """Colour and line style of the ``index``-th site in sorted order."""
    return SITE_COLOURS[index % len(SITE_COLOURS)], LINE_STYLES[index // len(SITE_COLOURS) % len(LINE_STYLES)]


def new_figure(
    width: float, height: float, columns: int, ratios: Sequence[float] | None = None, *, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` x ``height`` inches with plain axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
    axes: list[Axes] = list(grid.ravel())
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(colors=MUTED, labelsize=8, length=3)
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def label(ax: Axes, title: str, x: str, y: str) -> None:
    """Title above the left corner, axis labels in muted ink."""
    ax.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    ax.set_xlabel(x, fontsize=8, color=MUTED)
    ax.set_ylabel(y, fontsize=8, color=MUTED)


def png_bytes(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG, without a date, so that equal figures are equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG with its letters drawn as paths; no date and fixed identifiers, so that equal figures are equal bytes."""
    stream = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "fedsam", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
