"""What accuracy costs in bytes: the methods of a comparison, and a run as it goes on, beside others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedsam_pipeline.files import write_bytes
from fedsam_pipeline.report.style import GRID, INK, MUTED, SITE_COLOURS, label, new_figure, png_bytes, site_style


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


@dataclass(frozen=True)
class RunCost:
    """What a finished run reached, and what it sent.

    Attributes:
        name: ``RECIPE__PLANS__main/PROTOCOL__STRATEGY__seedN``.
        dice: mean of the sites, on the whole fold.
        rounds: of the run.
        num_bytes: of all its messages, both directions.
    """

    name: str
    dice: float
    rounds: int
    num_bytes: int


def run_cost_figure(path: Sequence[tuple[float, float]], this: RunCost | None, others: Sequence[RunCost]) -> Figure:
    """Dice against bytes: of this run after its rounds (a line) and at its end (a diamond), and of other runs, by their numbers.

    Args:
        path: (bytes so far, Dice) of this run's model, in order, above 0 bytes.
        this: at its end; ``None`` where it is not done.
        others: other runs; the first is number 2.
    """
    figure, (ax,) = new_figure(5.6, 3.4, 1)
    label(ax, "Dice against traffic", "MB so far, all sites, both directions", "Dice, mean of sites")
    if path:
        sent, dice = zip(*path, strict=True)
        ax.plot(np.asarray(sent) / 1e6, dice, color=SITE_COLOURS[0], marker="o", markersize=3, linewidth=1.3, label="on the way")
    points = ([(1, this)] if this is not None else []) + list(enumerate(others, start=2))
    for number, run in points:
        ours = number == 1
        place = run.num_bytes / 1e6, run.dice
        colour = SITE_COLOURS[0] if ours else MUTED
        ax.scatter(*place, s=60 if ours else 36, marker="D" if ours else "o", color=colour, edgecolors="white", zorder=5)
        ax.annotate(str(number), place, xytext=(7, 4), textcoords="offset points", fontsize=9, color=INK)
    spent = [run.num_bytes for _, run in points] + [sent for sent, _ in path]
    if max(spent, default=1) > 20 * min(spent, default=1):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(axis="x", which="major", color=GRID, linewidth=0.8)
    ax.margins(x=0.1, y=0.15)
    return figure
