"""Figure of a comparison: what accuracy costs in bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedsam_pipeline.files import write_bytes
from fedsam_pipeline.report.style import GRID, MUTED, label, new_figure, png_bytes, site_style


def tradeoff_figure(record: Mapping[str, Any]) -> Figure:
    """Mean Dice with its interval against the bytes of a whole run, both directions, on a logarithmic axis.

    Methods under which no updates travel are lines across.

    Args:
        record: the content of a ``comparison.json``.
    """
    figure, (ax,) = new_figure(8.0, 4.2, 1)
    label(ax, "Dice against traffic", "MB of a whole run, all sites, both directions", "Dice, mean of sites")
    drawn = [method for method in record["methods"] if method["dice"]["mean"]["value"] is not None]
    for index, method in enumerate(drawn):
        colour, style = site_style(index)
        mean = method["dice"]["mean"]
        if method["bytes"] is None:
            ax.axhline(mean["value"], color=colour, linestyle="--", linewidth=1.2, label=f"{method['name']} (no updates travel)")
            continue
        ends = np.array([[mean["value"] - mean["low"]], [mean["high"] - mean["value"]]])
        ax.errorbar(
            [method["bytes"]["total"] / 1e6],
            [mean["value"]],
            yerr=np.maximum(ends, 0),  # the ends are percentiles: few cases may leave the mean outside
            color=colour,
            marker="osD^v<>"[index % 7],
            linestyle=style,
            markersize=6,
            capsize=3,
            linewidth=1.2,
            label=method["name"],
        )
    if any(method["bytes"] is not None for method in drawn):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(axis="x", which="major", color=GRID, linewidth=0.8)
    ax.margins(x=0.15, y=0.15)
    if drawn:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False, labelcolor=MUTED)
    return figure


def tradeoff_png(record: Mapping[str, Any], path: Path) -> None:
    """Writes the figure to ``path`` (PNG), atomically."""
    write_bytes(path, png_bytes(tradeoff_figure(record)))
