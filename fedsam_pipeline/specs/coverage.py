"""What the images that a plan was made from were like: the ranges that a trained model carries, to tell images of another kind."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from fedsam_pipeline.specs.document import Document, Rule

COVERAGE_FILE = "coverage.json"
"""in a trained fold, and in the folds of a bundle"""

Interval = tuple[float, float]
"""both ends included"""


class ChannelCoverage(Document):
    """Foreground intensities of one channel, in the units of the files."""

    name: str
    spans: Annotated[tuple[Interval, ...], Field(max_length=1024)]
    """rising intervals that hold nearly all of them; none where nothing is known"""


class Coverage(Document):
    """Made of the merged fingerprint alone (``planning/coverage.py``). Axes are (z, y, x) in canonical orientation, lengths in mm."""

    schema_version: Literal[1] = 1
    fingerprint_sha256: str
    """as in the plan"""
    num_cases: PositiveInt
    foreground_share: float = Field(ge=0, le=1)
    """share of the cases that are known to hold foreground"""
    spacing: tuple[Interval, Interval, Interval]
    extent: tuple[Interval, Interval, Interval]
    """of the non-zero box"""
    channels: tuple[ChannelCoverage, ...] = Field(min_length=1)

    def interval_faults(self) -> Iterator[str]:
        """Intervals that end before they begin, or overlap."""
        for name, intervals in (("spacing", self.spacing), ("extent", self.extent)):
            for axis, (low, high) in zip("zyx", intervals, strict=True):
                if not 0 <= low <= high or high == 0:
                    yield f"{name}: {low:g} to {high:g} along {axis} is no range of lengths"
        for number, channel in enumerate(self.channels):
            ends = [end for span in channel.spans for end in span]
            if any(before > after for before, after in pairwise(ends)):
                yield f"channels.{number}.spans: the intervals do not rise"

    rules: ClassVar[tuple[Rule, ...]] = (Rule(("spacing", "extent", "channels"), interval_faults),)
