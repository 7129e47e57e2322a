"""Figures of numbers: learning curves and the Dice of cases at their sites."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsam_pipeline.files import write_bytes
from fedsam_pipeline.report.style import INK, label, new_figure, png_bytes, site_style


def round_records(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of ``progress.jsonl`` that describe a round, in order of their rounds; a repeated round counts once, as last written."""
    rounds = {int(record["round"]): record for record in records if record.get("event") == "round"}
    return [rounds[number] for number in sorted(rounds)]


def progress_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss and validation Dice over rounds, a line a site and one for the mean of the sites.

    A round scores the model that it received, so its Dice stands at ``validated_round``, one before its own number. The ``final`` record,
    the score of the last model on the whole fold, is drawn as diamonds.

    Args:
        records: the lines of ``progress.jsonl``; lines of other events are left out.
    """
    rounds = round_records(records)
    final = next((record for record in reversed(records) if record.get("event") == "final"), None)
    sites = sorted({site for record in (*rounds, final or {}) for key in ("sites", "validation") for site in record.get(key) or {}})
    figure, (loss_axes, dice_axes) = new_figure(9.0, 3.4, 2)
    label(loss_axes, "Training loss", "round", "mean loss of the local steps")
    label(dice_axes, "Validation Dice", "after round", "Dice of the global model")
    for index, site in enumerate(sites):
        colour, style = site_style(index)
        loss = [(record["round"], (record.get("sites") or {}).get(site, {}).get("loss")) for record in rounds]
        dice = [(_validated(record), (record.get("validation") or {}).get(site, {}).get("dice")) for record in rounds]
        _line(loss_axes, loss, site, colour, style)
        _line(dice_axes, dice, site, colour, style)
        _diamond(dice_axes, final, ((final or {}).get("validation") or {}).get(site, {}).get("dice"), colour, 22)
    _line(dice_axes, [(_validated(record), record.get("dice")) for record in rounds], "mean of sites", INK, "-", width=2.2)
    _diamond(dice_axes, final, (final or {}).get("dice"), INK, 46, name="final, whole fold")
    for ax in (loss_axes, dice_axes):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.margins(x=0.08)
    shown = [y for line in dice_axes.get_lines() for y in np.asarray(line.get_ydata(), dtype=np.float64)]
    shown += [float(y) for points in dice_axes.collections for _, y in np.asarray(points.get_offsets())]
    dice_axes.set_ylim(np.floor(10 * min(shown, default=0.0)) / 10, 1)
    handles, names = _legend_entries(loss_axes, dice_axes)
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), fontsize=8, frameon=False)
    return figure


def progress_png(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the learning curves to ``path`` (PNG), atomically."""
    write_bytes(path, png_bytes(progress_figure(records)))


def dice_figure(summary: Mapping[str, Any]) -> Figure:
    """Dice of every case at its site, a panel a class: dots, their quartiles as a box, the mean as a line.

    Args:
        summary: the content of a ``summary.json``.
    """
    labels: Mapping[str, int] = summary["labels"]
    sites = sorted(summary["sites"])
    width = max(4.5, min(9.0, 1.2 + len(labels) * (0.9 + 0.55 * len(sites))))
    figure, axes = new_figure(width, 3.0, len(labels))
    for ax, (name, value) in zip(axes, labels.items(), strict=True):
        label(ax, name, "", "Dice" if ax is axes[0] else "")
        for index, site in enumerate(sites):
            rows = [row["metrics"][str(value)]["Dice"] for row in summary["metric_per_case"] if row["site"] == site]
            _box(ax, index, np.array([dice for dice in rows if dice is not None], dtype=np.float64))
        ax.set_xticks(range(len(sites)), sites, rotation=30 if len(sites) > 3 else 0, ha="right" if len(sites) > 3 else "center")
        ax.set_xlim(-0.6, len(sites) - 0.4)
        ax.set_ylim(-0.02, 1.02)
    return figure


def _validated(record: Mapping[str, Any]) -> int:
    """The round whose model the Dice of this record belongs to."""
    number = record.get("validated_round")
    return int(record["round"]) if number is None else int(number)


def _line(ax: Axes, values: Sequence[tuple[int, float | None]], name: str, colour: str, style: str, width: float = 1.3) -> None:
    points = [(number, value) for number, value in values if value is not None]
    if points:
        marker = "o" if len(points) < 15 else None
        ax.plot(*zip(*points, strict=True), color=colour, linestyle=style, linewidth=width, marker=marker, markersize=2.5, label=name)


def _diamond(ax: Axes, final: Mapping[str, Any] | None, value: float | None, colour: str, size: float, name: str | None = None) -> None:
    if final is None or value is None:
        return
    ax.scatter([final["round"]], [value], s=size, color=colour, marker="D", zorder=5, edgecolors="white", linewidths=0.8, label=name)
    if name is not None:
        ax.annotate(
            f"{value:.3f}", (final["round"], value), xytext=(7, -3), textcoords="offset points", fontsize=8, color=colour, fontweight="bold"
        )


def _box(ax: Axes, index: int, values: Any) -> None:
    if not values.size:
        ax.text(index, 0.5, "absent", ha="center", va="center", fontsize=7, color=INK, rotation=90)
        return
    colour, _ = site_style(index)
    spread = np.random.default_rng(0).uniform(-0.16, 0.16, len(values))  # fixed: the same summary gives the same figure
    ax.scatter(index + spread, values, s=9, color=colour, alpha=0.45, linewidths=0)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    ax.bar(index, high - low, 0.5, bottom=low, facecolor="none", edgecolor=colour, linewidth=1.2)
    ax.hlines(middle, index - 0.25, index + 0.25, color=colour, linewidth=2)


def _legend_entries(*axes: Axes) -> tuple[list[Any], list[str]]:
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    return list(entries.values()), list(entries)
