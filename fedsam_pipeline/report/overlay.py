"""Pictures of single cases: a slice with the contours of reference and prediction. They show patients: for a site, never for the server."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fedsam_pipeline.report.style import INK, SITE_COLOURS, label, new_figure, png_bytes

CLASS_COLOURS = ("#FFB000", "#3DDCFF", "#FF5A8A", "#8CFF6B", *SITE_COLOURS)
"""bright on grey images"""


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
    low, high = np.percentile(picture, [1, 99])
    rows, columns = (spacing[other] for other in range(3) if other != axis)
    height = 3.0 * (picture.shape[0] * rows) / (picture.shape[1] * columns)
    figure, axes = new_figure(6.4, min(max(height, 1.6), 5.0) + 0.6, 2)
    for ax in axes:
        ax.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=rows / columns, interpolation="nearest")
        ax.grid(False)
        ax.set_axis_off()
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
