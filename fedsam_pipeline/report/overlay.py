"""Pictures of single cases: slices with a mask, or with reference and prediction. They show patients: for a site, never for the server."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from fedsam_pipeline.report.style import INK, SITE_COLOURS, label, new_figure, png_bytes

CLASS_COLOURS = ("#FFB000", "#3DDCFF", "#FF5A8A", "#8CFF6B", *SITE_COLOURS)
"""bright on grey images"""
IGNORE_COLOUR = "#9AA5B1"
"""of voxels that nobody annotated"""
FILL = 0.35
"""how much of the image a filled mask hides"""
MAX_SLICES = 4


def choose_cases(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The worst, the median and the best case of a summary by their mean Dice over classes, as (word, case).

    Cases without any Dice are left out; fewer than three cases give fewer pictures.
    """
    scored = []
    for row in summary["metric_per_case"]:
        values = [metrics["Dice"] for metrics in row["metrics"].values() if metrics["Dice"] is not None]
        if values:
            scored.append((float(np.mean(values)), str(row["case"])))
    scored.sort()
    if not scored:
        return []
    wanted = {"worst": 0, "median": (len(scored) - 1) // 2, "best": len(scored) - 1}
    chosen: dict[int, tuple[str, str]] = {}
    for word, position in wanted.items():
        chosen.setdefault(position, (f"{word}, Dice {scored[position][0]:.3f}", scored[position][1]))
    return list(chosen.values())


def overlay_png(
    image: NDArray[np.floating],
    reference: NDArray[np.integer] | None,
    prediction: NDArray[np.integer],
    *,
    class_names: Sequence[str],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    axis: int = 0,
    title: str = "",
) -> bytes:
    """Draws the slice that shows most foreground: the plain image, and the same with contours.

    Args:
        image: (Z, Y, X) intensities of one channel.
        reference: (Z, Y, X) labels, or ``None`` where there are none.
        prediction: (Z, Y, X) labels.
        class_names: foreground names in order of their values 1, 2, ...
        spacing: mm, (z, y, x); decides the shape of the pixels.
        axis: the axis that is cut.
        title: text above the picture.

    Returns:
        PNG bytes.

    Raises:
        ValueError: arrays of different shapes.
    """
    if image.shape != prediction.shape or (reference is not None and reference.shape != image.shape):
        raise ValueError(f"different shapes: image {image.shape}, prediction {prediction.shape}")
    truth = prediction if reference is None else reference
    guide = truth if np.any(truth) else prediction
    amounts = np.count_nonzero(guide, axis=tuple(other for other in range(3) if other != axis))
    index = int(np.argmax(amounts)) if amounts.any() else image.shape[axis] // 2
    picture = np.take(image, index, axis=axis).astype(np.float64)
    rows, columns = (spacing[other] for other in range(3) if other != axis)
    height = 3.0 * (picture.shape[0] * rows) / (picture.shape[1] * columns)
    figure, axes = new_figure(6.4, min(max(height, 1.6), 5.0) + 0.6, 2)
    for ax in axes:
        _draw_grey(ax, picture, rows / columns)
    drawn = [(reference, "-")] if reference is not None else []
    for labels, style in [*drawn, (prediction, (0, (2.5, 1.5)))]:
        plane = np.take(labels, index, axis=axis)
        for value in range(1, len(class_names) + 1):
            if np.any(plane == value):
                colour = CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]
                axes[1].contour(plane == value, levels=[0.5], colors=[colour], linewidths=1.4, linestyles=[style])
    label(axes[0], title, "", "")
    axes[1].set_title(f"slice {index}", loc="right", fontsize=8, color=INK)
    entries = [Line2D([], [], color=CLASS_COLOURS[i % len(CLASS_COLOURS)], label=name) for i, name in enumerate(class_names)]
    if reference is not None:
        entries.append(Line2D([], [], color=INK, label="reference"))
    entries.append(Line2D([], [], color=INK, linestyle=(0, (2.5, 1.5)), label="prediction"))
    figure.legend(handles=entries, loc="outside lower center", ncols=min(5, len(entries)), fontsize=8, frameon=False)
    return png_bytes(figure)


def mask_png(
    image: NDArray[np.floating],
    labels: NDArray[np.integer],
    classes: Mapping[str, int],
    *,
    ignore: int | None = None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    axis: int = 0,
    upright: bool = False,
    title: str = "",
) -> bytes:
    """Draws an image with its mask: the slices of ``choose_slices``, plain above and with filled classes below.

    Args:
        image: (Z, Y, X) intensities of one channel.
        labels: (Z, Y, X).
        classes: foreground name to value.
        ignore: the value of voxels that nobody annotated, drawn grey.
        spacing: mm, (z, y, x); decides the shape of the pixels.
        axis: the axis that is cut.
        upright: whether the first row of a slice belongs at the bottom (rows that grow towards the head).
        title: text above the picture.

    Returns:
        PNG bytes.

    Raises:
        ValueError: arrays of different shapes.
    """
    if image.shape != labels.shape:
        raise ValueError(f"different shapes: image {image.shape}, labels {labels.shape}")
    chosen = choose_slices(labels, list(classes.values()), axis)
    painted = [(value, CLASS_COLOURS[number % len(CLASS_COLOURS)], name) for number, (name, value) in enumerate(classes.items())]
    if ignore is not None:
        painted.append((ignore, IGNORE_COLOUR, "not annotated"))
    rows, columns = (other for other in range(3) if other != axis)
    shape = (image.shape[rows] * spacing[rows]) / (image.shape[columns] * spacing[columns])
    height = min(max(2.6 * shape, 1.2), 5.0)
    figure, axes = new_figure(2.6 * max(len(chosen), 2), 2 * height + 0.9, len(chosen), rows=2)
    for column, index in enumerate(chosen):
        picture, plane = (np.take(array, index, axis=axis) for array in (image, labels))
        plain, overlaid = axes[column], axes[len(chosen) + column]
        for ax in (plain, overlaid):
            _draw_grey(ax, picture.astype(np.float64), spacing[rows] / spacing[columns], upright=upright)
        colours = np.zeros((*plane.shape, 4))
        for value, colour, _ in painted:
            if np.any(plane == value):
                colours[plane == value] = to_rgba(colour, FILL)
                overlaid.contour(plane == value, levels=[0.5], colors=[colour], linewidths=0.8)
        overlaid.imshow(colours, aspect=spacing[rows] / spacing[columns], interpolation="nearest", origin="lower" if upright else "upper")
        plain.set_title(f"slice {index + 1} of {image.shape[axis]}", fontsize=8, color=INK)
    figure.suptitle(title, fontsize=10, color=INK)
    patches = [Patch(color=colour, label=name) for _, colour, name in painted]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(5, len(patches)), fontsize=8, frameon=False)
    return png_bytes(figure)


def choose_slices(labels: NDArray[np.integer], values: Sequence[int], axis: int) -> list[int]:
    """The slice with most foreground, and for each class that no chosen slice shows, the one with most of it; at most ``MAX_SLICES``.

    Args:
        labels: (Z, Y, X).
        values: of the foreground classes.
        axis: the axis that is cut.

    Returns:
        Indices along ``axis``, sorted; the middle one where there is no foreground.
    """
    others = tuple(other for other in range(3) if other != axis)
    amounts = {value: np.count_nonzero(labels == value, axis=others) for value in values}
    total = np.sum(list(amounts.values()), axis=0)
    if not np.any(total):
        return [labels.shape[axis] // 2]
    chosen = [int(np.argmax(total))]
    for amount in amounts.values():
        if len(chosen) < MAX_SLICES and amount.any() and not amount[chosen].any():
            chosen.append(int(np.argmax(amount)))
    return sorted(chosen)


def _draw_grey(ax: Axes, picture: NDArray[np.float64], aspect: float, *, upright: bool = False) -> None:
    """The image in grey, from its 1st to its 99th percentile; a wider range would show one bright spot and nothing else."""
    low, high = np.percentile(picture, [1, 99])
    origin: Literal["lower", "upper"] = "lower" if upright else "upper"
    ax.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, interpolation="nearest", origin=origin)
    ax.grid(False)
    ax.set_axis_off()
