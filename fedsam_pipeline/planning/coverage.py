"""From the merged fingerprint to the ranges that a trained model carries."""

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.planning.grids import EXTENT_STEP, INTENSITY_TREE, SPACING_STEP, intensity_value, linear_value
from fedsam_pipeline.planning.thresholds import QualityRules
from fedsam_pipeline.specs.coverage import ChannelCoverage, Coverage, Interval
from fedsam_pipeline.specs.fingerprint import Counts, Fingerprint

LEVEL = 6
"""of ``INTENSITY_TREE``: bins of 64 positions, neighbours a factor of 1.38 apart: narrow beside another unit or scaling of intensities,
wide beside the gaps that few cases leave in a histogram"""


def coverage_of(fingerprint: Fingerprint, rules: QualityRules) -> Coverage:
    """What a plan covers: the range of spacings and extents, and where the foreground's intensities lie.

    Ranges go from the low end of the lowest bin to the high end of the highest, so that where a site coarsened its bins they are wider than
    its images. Intensities may lie in several places, because sites scan with different scales: the spans are the narrowest set of bins
    (``LEVEL``) that holds the share ``rules.intensity_mass`` of the histogram (its highest-density region: Hyndman, "Computing and graphing
    highest density regions", The American Statistician 1996), neighbours and those with one bin between them joined. What a site counts in
    a wide bin is spread evenly over its positions.

    Args:
        fingerprint: of the federation, merged.
        rules: ``intensity_mass``.
    """
    z, y, x = (_range(counts, SPACING_STEP) for counts in fingerprint.spacing)
    depth, height, width = (_range(counts, EXTENT_STEP) for counts in fingerprint.extent)
    with_foreground = min(channel.moments.weight for channel in fingerprint.channels)
    return Coverage(
        fingerprint_sha256=fingerprint.sha256(),
        num_cases=fingerprint.num_cases,
        foreground_share=min(1.0, with_foreground / fingerprint.num_cases),
        spacing=(z, y, x),
        extent=(depth, height, width),
        channels=tuple(
            ChannelCoverage(name=channel.name, spans=_spans(channel.histogram, rules.intensity_mass)) for channel in fingerprint.channels
        ),
    )


def _range(counts: Counts, step: float) -> Interval:
    """From half a position below the lowest bin to half a position above the highest: what the grid rounds to them."""
    low, high = min(each.low for each in counts), max(each.high for each in counts)
    return max(0.0, linear_value(low - 0.5, step)), linear_value(high + 0.5, step)


def _spans(histogram: Counts, mass: float) -> tuple[Interval, ...]:
    """The intervals of intensities that hold the share ``mass``; none of an empty histogram."""
    if not histogram:
        return ()
    masses = _bin_masses(histogram)
    order = np.argsort(-masses, kind="stable")
    needed = int(np.searchsorted(np.cumsum(masses[order]), mass * masses.sum())) + 1
    kept = sorted(int(index) for index in order[:needed] if masses[index] > 0)
    spans: list[list[int]] = []
    for index in kept:
        if spans and index - spans[-1][1] <= 2:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    ends = ((INTENSITY_TREE.bin((LEVEL, first)).low, INTENSITY_TREE.bin((LEVEL, last)).high) for first, last in spans)
    return tuple((intensity_value(low - 0.5), intensity_value(high + 0.5)) for low, high in ends)


def _bin_masses(histogram: Counts) -> NDArray[np.float64]:
    """Mass of every node of ``LEVEL``."""
    masses = np.zeros(1 << (INTENSITY_TREE.depth - LEVEL))
    for each, mass in histogram.items():
        first, last = INTENSITY_TREE.node(each.low, LEVEL)[1], INTENSITY_TREE.node(each.high, LEVEL)[1]
        edges = [INTENSITY_TREE.bin((LEVEL, index)) for index in range(first, last + 1)]
        shared = [min(each.high, edge.high) - max(each.low, edge.low) + 1 for edge in edges]
        masses[first : last + 1] += mass * np.array(shared) / (each.high - each.low + 1)
    return masses
