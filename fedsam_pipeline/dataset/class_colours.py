"""Colours of classes for the viewers that take them from a mask's file: without, some draw all segments alike."""

from colorsys import hsv_to_rgb

GOLDEN_RATIO = 0.6180339887
"""steps of this share of the colour circle never meet, and neighbours in number lie far apart"""


def class_colour(value: int) -> tuple[float, float, float]:
    """Red, green and blue, 0 to 1, of a foreground class: 1, 2, ..."""
    return hsv_to_rgb((value - 1) * GOLDEN_RATIO % 1, 0.7, 0.95)
