"""Fingerprint: all that planning needs to know of a site's images, and all that leaves the site.

Everything is a count, or a moment, over cases. There is no list of cases and no name of a file or patient. The grids of the counts are
fixed before any data is seen (``planning/grids.py``), so that counts of several sites add up exactly, in any order. Where few cases lie,
a count belongs to several neighbouring grid positions together, a bin (``planning/privacy.py`` decides which).
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PlainSerializer, PositiveInt, model_validator

from fedsam_pipeline.specs.document import Document


class Bin(NamedTuple):
    """Neighbouring grid positions, ``low`` and ``high`` included; only one where nothing was coarsened.

    In files ``"1000"`` or ``"896..1023"``.
    """

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


def _read_counts(value: Any) -> Any:
    return {_read_bin(key): count for key, count in value.items()} if isinstance(value, Mapping) else value


def _read_bin(key: Any) -> Bin:
    try:
        if isinstance(key, tuple):
            found = Bin(*key)
        elif isinstance(key, int):
            found = Bin(key, key)
        else:
            low, dots, high = str(key).partition("..")
            found = Bin(int(low), int(high if dots else low))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key!r} is no bin: a whole number, or two as in '896..1023'") from error
    if found.low > found.high:
        raise ValueError(f"the bin {key!r} ends before it begins")
    return found


def _write_counts(counts: Mapping[Bin, int]) -> dict[str, int]:
    return {str(each): counts[each] for each in sorted(counts)}


Counts = Annotated[dict[Bin, PositiveInt], BeforeValidator(_read_counts), PlainSerializer(_write_counts, when_used="json")]
"""bin to count; what was never met is left out. A bin may lie inside another: then each counts what the other does not"""

ExactFloat = Annotated[float, PlainSerializer(repr, return_type=str, when_used="json")]
"""a float that files keep to its last bit (as text), because sites' moments are merged to 1e-12"""

CASE_MASS = 10**9
"""the foreground voxels of a case weigh this much together, whatever their number: every case counts equally"""


class IntensityMoments(Document):
    """Foreground intensities of one channel. ``weight`` is the number of cases with foreground; each weighs 1. 0: none, or too few.

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
    """signed-log grid: mass in each bin; each case distributes ``CASE_MASS``"""

    @model_validator(mode="after")
    def _mass_is_conserved(self) -> Self:
        mass, expected = sum(self.histogram.values()), self.moments.weight * CASE_MASS
        if mass != expected:
            raise ValueError(f"the histogram of {self.name} holds a mass of {mass}, expected {expected}")
        return self


class ClassFingerprint(Document):
    """One foreground class, over the cases that hold it; each case counts once."""

    num_cases: PositiveInt
    volume_mm3: Counts
    """log grid"""
    components: Counts
    """number of connected components (26-neighbourhood)"""
    extent_mm: tuple[Counts, Counts, Counts]
    """log grid: side of the largest component's bounding box along (z, y, x)"""

    @model_validator(mode="after")
    def _every_case_is_counted(self) -> Self:
        for name, counts in (
            ("volume_mm3", self.volume_mm3),
            ("components", self.components),
            *((f"extent_mm.{axis}", self.extent_mm[axis]) for axis in range(3)),
        ):
            if sum(counts.values()) != self.num_cases:
                raise ValueError(f"{name} counts {sum(counts.values())} cases, expected {self.num_cases}")
        return self


class Fingerprint(Document):
    """One site's fingerprint, or several merged. Axes are (z, y, x) in canonical orientation (LPS), lengths in mm."""

    schema_version: int = Field(default=2, ge=2, le=2)
    dataset_name: str
    labels: dict[str, int]
    """label name to value, background 0 included"""
    privacy_floor: PositiveInt
    """every number stands for at least so many patients of a site; of several sites, the smallest of theirs. 1: nothing was coarsened"""
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
    """the classes that enough cases hold: one that is missing is held by no case or by few"""

    @model_validator(mode="after")
    def _every_case_is_counted(self) -> Self:
        for name, counts in (
            *((f"{field}.{axis}", getattr(self, field)[axis]) for field in ("spacing", "size", "extent") for axis in range(3)),
            ("kept_fraction", self.kept_fraction),
        ):
            if sum(counts.values()) != self.num_cases:
                raise ValueError(f"{name} counts {sum(counts.values())} cases, expected {self.num_cases}")
        if unknown := sorted(name for name in self.classes if not self.labels.get(name)):
            raise ValueError(f"classes: found {unknown}, which are no foreground classes of {self.labels}")
        return self


class WithheldFingerprint(Document):
    """What a site says that has too few cases to release anything: this, and nothing else."""

    schema_version: int = Field(default=2, ge=2, le=2)
    withheld: str
    """the reason, for people"""
