"""Objects on a slice: what one prompt stands for, in training and wherever prompts are made of a mask."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MAX_OBJECTS = 4
"""prompts for one class on one slice, its largest objects: nobody would mark more"""
_TOUCHING = np.ones((3, 3))


def slice_objects(plane: NDArray[Any], label: int) -> Iterator[NDArray[np.int64]]:
    """The largest objects of a class on one slice, in falling size.

    Args:
        plane: (H, W) class numbers.
        label: the class.

    Yields:
        (N, 2) pixels (y, x) of each of at most ``MAX_OBJECTS`` connected components; diagonal neighbours touch.
    """
    components, _ = ndimage.label(plane == label, _TOUCHING)
    sizes = np.bincount(components.ravel())[1:]
    for component in 1 + np.argsort(-sizes, kind="stable")[:MAX_OBJECTS]:
        yield np.argwhere(components == component)


def inner_pixel(pixels: NDArray[np.int64], wanted: NDArray[np.float64]) -> tuple[int, int]:
    """The pixel (y, x) of an object, (N, 2), that is nearest to a place: a person points into the object."""
    y, x = pixels[np.argmin(np.square(pixels - wanted).sum(axis=1))].tolist()
    return y, x
