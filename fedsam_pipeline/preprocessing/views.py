"""Views: one stored volume, cut along the plan's slice axis or along the two others.

A view along another axis is the plan as it would be with that slice axis, so that training and prediction need no second code path: image
size, slab depth and encoder inputs are the plan's, window and mirror axes are turned. One model for three views whose class probabilities
are averaged: view aggregation as in QuickNAT (Roy et al., NeuroImage 2019), which trains a network a view.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.preprocessing.slabs import SliceableVolume
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.plans import Plans

Order = tuple[int, int, int]
AS_STORED: Order = (0, 1, 2)


@dataclass(frozen=True)
class View:
    """How the slices of one view lie in a stored volume (S, H, W).

    Attributes:
        plans: the plan with the view's slice axis, window and mirror axes.
        order: for the slices, rows and columns of the view the axis of (S, H, W).
    """

    plans: Plans
    order: Order

    def volume(self, stored: SliceableVolume) -> SliceableVolume:
        """A stored volume (..., S, H, W) as the view sees it; nothing is read."""
        return turned(stored, self.order)

    def voxels(self, stored: NDArray[np.int32]) -> NDArray[np.int32]:
        """(N, 3) voxels of the stored volume as voxels of the view."""
        return stored[:, self.order]

    def axes(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of (S, H, W) as axes of the view, sorted."""
        return tuple(sorted(self.order.index(axis) for axis in stored))


def views(plans: Plans, configuration: Configuration) -> tuple[View, ...]:
    """The views of a configuration; the plan's own is the last one."""
    own = View(plans, AS_STORED)
    if configuration == "main":
        return (own,)
    return (*(_view_along(axis, plans) for axis in range(3) if axis != plans.slice_axis), own)


def _view_along(axis: int, plans: Plans) -> View:
    """The view whose slices are cut along ``axis`` of (z, y, x).

    The plan's slice axis comes into the plane in the place of the axis that left it, and takes over that axis's extent of the window in
    mm: a structure has the same size in the encoder's input whichever way it is cut.
    """
    stored = (plans.slice_axis, *(other for other in range(3) if other != plans.slice_axis))
    wanted = (axis, *(other for other in range(3) if other != axis))
    order = (stored.index(wanted[0]), stored.index(wanted[1]), stored.index(wanted[2]))
    spacing = plans.target_spacing
    length = dict(zip(stored[1:], plans.window, strict=True))
    length[plans.slice_axis] = max(1, round(length[axis] * spacing[axis] / spacing[plans.slice_axis]))
    mirrored = tuple(sorted(order.index(each) for each in plans.training.mirror_axes))
    values = plans.to_dict()
    values |= {"slice_axis": axis, "window": [length[other] for other in wanted[1:]]}
    values["training"] |= {"mirror_axes": list(mirrored)}
    return View(Plans.from_dict(values), order)


def turned(stored: SliceableVolume, order: Order) -> SliceableVolume:
    """A volume (..., S, H, W) with these axes in another order; nothing is read before it is sliced."""
    return stored if order == AS_STORED else _Turned(stored, order)


class _Turned:
    """Takes one slice object an axis, and reads no more of the stored volume than they ask for."""

    def __init__(self, stored: SliceableVolume, order: Order) -> None:
        self._stored, self._order = stored, order
        self._leading = len(stored.shape) - 3

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self._stored.shape[: self._leading], *(self._stored.shape[self._leading + axis] for axis in self._order))

    def __getitem__(self, key: Any, /) -> Any:
        leading, view = key[: self._leading], key[self._leading :]
        place = [view[self._order.index(axis)] for axis in range(3)]
        block = np.asarray(self._stored[(*leading, *place)])
        return block.transpose(*range(self._leading), *(self._leading + axis for axis in self._order))
