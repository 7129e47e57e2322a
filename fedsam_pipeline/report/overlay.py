"""Pictures of single cases: slices with a mask, or with reference and prediction. They show patients: for a site, never for the server."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from fedsam_pipeline.report.style import INK, SITE_COLOURS, new_figure, png_bytes

CLASS_COLOURS = ("#FFB000", "#3DDCFF", "#FF5A8A", "#8CFF6B", *SITE_COLOURS)
"""bright on grey images"""
IGNORE_COLOUR = "#9AA5B1"
"""of voxels that nobody annotated"""
FILL = 0.35
"""how much of the image a filled mask hides"""
MAX_SLICES = 4
DASHED = (0, (2.5, 1.5))
HOW_TO_READ = "Solid: reference; dashed: prediction. Shown: the slice with the largest area, and the one with most wrong voxels."
OVERLAY_DPI = 110
"""enough for a page; several pictures stand in one file"""


def overlay_png(
    image: NDArray[np.floating],
    reference: NDArray[np.integer],
    prediction: NDArray[np.integer],
    *,
    class_names: Sequence[str],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    axis: int = 0,
    upright: bool = False,
) -> bytes:
    """Draws a case with the contours of reference (solid) and prediction (dashed): the slices of ``overlay_slices``, plain above and with
    contours below; a single slice plain on the left and with contours on the right.

    Args:
        image: (Z, Y, X) intensities of one channel.
        reference: (Z, Y, X) labels; values that are no class are not drawn.
        prediction: (Z, Y, X) labels.
        class_names: foreground names in order of their values 1, 2, ...
        spacing: mm, (z, y, x); decides the shape of the pixels.
        axis: the axis that is cut.
        upright: whether the first row of a slice belongs at the bottom (rows that grow towards the head).

    Returns:
        PNG bytes.

    Raises:
        ValueError: arrays of different shapes.
    """
    if not image.shape == reference.shape == prediction.shape:
        raise ValueError(f"different shapes: image {image.shape}, reference {reference.shape}, prediction {prediction.shape}")
    slices = overlay_slices(reference, prediction, axis)
    rows, columns = (other for other in range(3) if other != axis)
    aspect = spacing[rows] / spacing[columns]
    height = min(max(2.7 * aspect * image.shape[rows] / image.shape[columns], 1.2), 4.5)
    across = len(slices) == 1  # one slice: plain on the left, drawn on the right
    figure, axes = new_figure(5.4, (1 if across else 2) * height + 0.9, 2, rows=len(slices))
    for column, (words, index) in enumerate(slices):
        picture = np.take(image, index, axis=axis).astype(np.float64)
        plain, drawn = axes[column], axes[column + len(slices)]
        for ax in (plain, drawn):
            _draw_grey(ax, picture, aspect, upright=upright)
        plain.set_title(f"{words}: slice {index + 1} of {image.shape[axis]}", fontsize=8, color=INK)
        for labels, style in ((reference, "-"), (prediction, DASHED)):
            plane = np.take(labels, index, axis=axis)
            for value in range(1, len(class_names) + 1):
                if np.any(plane == value):
                    colour = CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]
                    drawn.contour(plane == value, levels=[0.5], colors=[colour], linewidths=1.4, linestyles=[style])
    shown = [value for value in range(1, len(class_names) + 1) if np.any(reference == value) or np.any(prediction == value)]
    entries = [Line2D([], [], color=CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)], label=class_names[value - 1]) for value in shown]
    entries += [Line2D([], [], color=INK, label="reference"), Line2D([], [], color=INK, linestyle=DASHED, label="prediction")]
    figure.legend(handles=entries, loc="outside lower center", ncols=min(4, len(entries)), fontsize=8, frameon=False)
    return png_bytes(figure, dpi=OVERLAY_DPI)


def overlay_slices(reference: NDArray[np.integer], prediction: NDArray[np.integer], axis: int) -> list[tuple[str, int]]:
    """The slice with the largest foreground of the reference (of the prediction where it has none), and the one with most voxels in which
    the two disagree, where that is another one.

    Args:
        reference: (Z, Y, X) labels; negative voxels, which nobody annotated, disagree with nothing.
        prediction: (Z, Y, X) labels.
        axis: the axis that is cut.

    Returns:
        What the slice is and its index along ``axis``.
    """
    others = tuple(other for other in range(3) if other != axis)
    guide = reference if np.any(reference > 0) else prediction
    foreground = np.count_nonzero(guide > 0, axis=others)
    wrong = np.count_nonzero((reference != prediction) & (reference >= 0), axis=others)
    largest = int(np.argmax(foreground)) if foreground.any() else reference.shape[axis] // 2
    worst = int(np.argmax(wrong))
    chosen = [("largest area", largest)]
    return chosen if worst == largest or not wrong.any() else [*chosen, ("most errors", worst)]


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
