"""Figures of numbers: learning curves and the Dice of cases at their sites."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsam_pipeline.files import write_bytes
from fedsam_pipeline.report.case_scores import CaseDice
from fedsam_pipeline.report.style import INK, MUTED, label, new_figure, png_bytes, site_style

PANEL = (4.4, 3.0)
"""inches, of one figure: half the page's width"""
MAX_DOTS = 200
"""more cases of a site are a box with its outliers, not a cloud"""


def round_records(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of ``progress.jsonl`` that describe a round, in order of their rounds; a repeated round counts once, as last written."""
    rounds = {int(record["round"]): record for record in records if record.get("event") == "round"}
    return [rounds[number] for number in sorted(rounds)]


def final_record(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The line with the score of the last model on the whole fold; ``None`` where the run is not done."""
    return next((record for record in reversed(records) if record.get("event") == "final"), None)


def curve_sites(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """All sites that trained or were scored, sorted: their order gives them their colours."""
    parts = [*round_records(records), final_record(records) or {}]
    return sorted({site for record in parts for key in ("sites", "validation") for site in record.get(key) or {}})


def progress_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """``loss_figure`` and ``dice_figure`` beside each other.

    Args:
        records: the lines of ``progress.jsonl``; lines of other events are left out.
    """
    figure, (loss_axes, dice_axes) = new_figure(9.0, 3.4, 2)
    _draw_loss(loss_axes, records)
    _draw_dice(dice_axes, records)
    _legend(figure, loss_axes, dice_axes, columns=6)
    return figure


def progress_png(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the learning curves to ``path`` (PNG), atomically."""
    write_bytes(path, png_bytes(progress_figure(records)))


def loss_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss over rounds, a line a site."""
    figure, (ax,) = new_figure(*PANEL, 1)
    _draw_loss(ax, records)
    _legend(figure, ax, columns=4)
    return figure


def dice_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Validation Dice over rounds, a line a site and one for the mean of the sites.

    A round scores the model that it received, so its Dice stands at ``validated_round``, one before its own number. The ``final`` record,
    the score of the last model on the whole fold, is drawn as diamonds.
    """
    figure, (ax,) = new_figure(*PANEL, 1)
    _draw_dice(ax, records)
    _legend(figure, ax, columns=4)
    return figure


def box_figure(cases: Sequence[CaseDice], name: str | None) -> Figure:
    """Box plots of the cases' Dice, a box a site: quartiles, the median as a thick line, whiskers to the farthest case within 1.5 times the
    box (Tukey, Exploratory Data Analysis, 1977), and every case as a dot where a site has at most ``MAX_DOTS``.

    Args:
        cases: of all sites. The figures of all classes get the same axis.
        name: of the class; ``None``: each case's mean over its classes.
    """
    sites = sorted({each.site for each in cases})
    figure, (ax,) = new_figure(*PANEL, 1)
    label(ax, "mean of the classes" if name is None else name, "", "Dice of a case")
    for index, site in enumerate(sites):
        found = [each.mean if name is None else each.classes[name] for each in cases if each.site == site]
        _box(ax, index, np.array([dice for dice in found if dice is not None], dtype=np.float64))
    many = len(sites) > 4
    ax.set_xticks(range(len(sites)), sites, rotation=35 if many else 0, ha="right" if many else "center")
    ax.set_xlim(-0.6, len(sites) - 0.4)
    everything = [dice for each in cases for dice in (*each.classes.values(), each.mean) if dice is not None]
    ax.set_ylim(max(0, np.floor(10 * min(everything, default=0.0) - 0.01) / 10) - 0.02, 1.02)
    return figure


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, interpolated linearly: what the boxes show."""
    low, middle, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def _draw_loss(ax: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    label(ax, "Training loss", "round", "mean loss of the local steps")
    rounds = round_records(records)
    for index, site in enumerate(curve_sites(records)):
        colour, style = site_style(index)
        _line(ax, [(record["round"], (record.get("sites") or {}).get(site, {}).get("loss")) for record in rounds], site, colour, style)
    _count_rounds(ax)


def _draw_dice(ax: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    label(ax, "Validation Dice", "after round", "Dice of the global model")
    rounds, final = round_records(records), final_record(records)
    for index, site in enumerate(curve_sites(records)):
        colour, style = site_style(index)
        found = [(_validated(record), (record.get("validation") or {}).get(site, {}).get("dice")) for record in rounds]
        _line(ax, found, site, colour, style)
        _diamond(ax, final, ((final or {}).get("validation") or {}).get(site, {}).get("dice"), colour, 22)
    _line(ax, [(_validated(record), record.get("dice")) for record in rounds], "mean of sites", INK, "-", width=2.2)
    _diamond(ax, final, (final or {}).get("dice"), INK, 46, name="final, whole fold")
    _count_rounds(ax)
    shown = [y for line in ax.get_lines() for y in np.asarray(line.get_ydata(), dtype=np.float64)]
    shown += [float(y) for points in ax.collections for _, y in np.asarray(points.get_offsets())]
    ax.set_ylim(np.floor(10 * min(shown, default=0.0)) / 10, 1)


def _count_rounds(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.margins(x=0.08)


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
        ax.text(index, 0.5, "absent", ha="center", va="center", fontsize=8, color=MUTED, rotation=90, transform=ax.get_xaxis_transform())
        return
    colour, _ = site_style(index)
    crowded = len(values) > MAX_DOTS
    if not crowded:
        spread = np.random.default_rng(0).uniform(-0.16, 0.16, len(values))  # fixed: the same cases give the same figure
        ax.scatter(index + spread, values, s=11, color=colour, alpha=0.5, linewidths=0)
    ax.boxplot(
        values,
        positions=[index],
        widths=0.5,
        whis=1.5,
        showfliers=crowded,
        manage_ticks=False,
        boxprops={"color": colour, "linewidth": 1.2},
        whiskerprops={"color": colour, "linewidth": 1.0},
        capprops={"color": colour, "linewidth": 1.0},
        medianprops={"color": colour, "linewidth": 2.2},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
    )


def _legend(figure: Figure, *axes: Axes, columns: int) -> None:
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=min(columns, len(entries)), fontsize=8, frameon=False
        )
