"""Fingerprint: all that planning needs to know of a site's images, and all that leaves the site.

Everything is a count, or a moment, over cases. There is no list of cases and no name of a file or patient. The grids of the counts are
fixed before any data is seen (``planning/grids.py``), so that counts of several sites add up exactly, in any order.
"""

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PlainSerializer, PositiveInt, model_validator

from fedsam_pipeline.specs.document import Document

Counts = dict[int, PositiveInt]
"""grid position to count; positions that were never met are left out"""

ExactFloat = Annotated[float, PlainSerializer(repr, return_type=str, when_used="json")]
"""a float that files keep to its last bit (as text), because sites' moments are merged to 1e-12"""

CASE_MASS = 10**9
"""the foreground voxels of a case weigh this much together, whatever their number: every case counts equally"""


class IntensityMoments(Document):
    """Foreground intensities of one channel. ``weight`` is the number of cases with foreground; each weighs 1.

    ``m2`` is the weighted sum of squared deviations from the mean, so that the variance is ``m2 / weight`` (Chan, Golub & LeVeque 1979).
    """

    weight: NonNegativeInt = 0
    mean: ExactFloat = 0.0
    m2: Annotated[ExactFloat, Field(ge=0)] = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation; 0 without cases."""
        return float((self.m2 / self.weight) ** 0.5) if self.weight else 0.0


class ChannelFingerprint(Document):
    """One channel's foreground intensities (all classes but background), in the units of the files."""

    name: str
    moments: IntensityMoments
    histogram: Counts
    """signed-log grid position to mass; each case distributes ``CASE_MASS``"""

    @model_validator(mode="after")
    def _mass_is_conserved(self) -> Self:
        mass, expected = sum(self.histogram.values()), self.moments.weight * CASE_MASS
        if mass != expected:
            raise ValueError(f"the histogram of {self.name} holds a mass of {mass}, expected {expected}")
        return self


class ClassFingerprint(Document):
    """One foreground class, over the cases that hold it; each case counts once."""

    num_cases: NonNegativeInt
    volume_mm3: Counts
    """log grid"""
    components: Counts
    """number of connected components (26-neighbourhood)"""
    extent_mm: tuple[Counts, Counts, Counts]
    """log grid: side of the largest component's bounding box along (z, y, x)"""


class Fingerprint(Document):
    """One site's fingerprint, or several merged. Axes are (z, y, x) in canonical orientation (LPS), lengths in mm."""

    schema_version: int = Field(default=1, ge=1, le=1)
    dataset_name: str
    labels: dict[str, int]
    """label name to value, background 0 included"""
    num_sites: PositiveInt
    num_cases: PositiveInt
    spacing: tuple[Counts, Counts, Counts]
    """spacing grid (thousandths of a mm)"""
    size: tuple[Counts, Counts, Counts]
    """voxels after cropping to the non-zero box"""
    extent: tuple[Counts, Counts, Counts]
    """extent grid (tenths of a mm): the same box in mm"""
    kept_fraction: Counts
    """fraction grid (thousandths): share of the volume that the non-zero box keeps"""
    channels: tuple[ChannelFingerprint, ...] = Field(min_length=1)
    classes: dict[str, ClassFingerprint]

    @model_validator(mode="after")
    def _every_case_is_counted(self) -> Self:
        for name, counts in (
            *((f"{field}.{axis}", getattr(self, field)[axis]) for field in ("spacing", "size", "extent") for axis in range(3)),
            ("kept_fraction", self.kept_fraction),
        ):
            if sum(counts.values()) != self.num_cases:
                raise ValueError(f"{name} counts {sum(counts.values())} cases, expected {self.num_cases}")
        expected = sorted(name for name, value in self.labels.items() if value)
        if sorted(self.classes) != expected:
            raise ValueError(f"classes: found {sorted(self.classes)}, expected {expected}")
        return self
