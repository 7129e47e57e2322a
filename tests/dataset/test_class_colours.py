"""Colours of classes."""

import numpy as np

from fedsam_pipeline.dataset.class_colours import class_colour


def test_twenty_classes_have_colours_of_their_own() -> None:
    colours = np.array([class_colour(value) for value in range(1, 21)])
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)[~np.eye(20, dtype=bool)]
    assert colours.min() >= 0 and colours.max() <= 1
    assert apart.min() > 0.05
