"""The quality control of a prediction: one row a case, and the table of them."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from fedsam_pipeline.specs.document import Document

Length = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class QualityRow(Document):
    """One case. Axes are (z, y, x) in canonical orientation, lengths in mm."""

    schema_version: Literal[1] = 1
    case: str
    mask: str
    """name of the mask's file"""
    severity: float = Field(ge=0)
    """how far the worst measure is towards its limit (1) or beyond it; 0: nothing is known against the case"""
    flags: tuple[str, ...]
    """what lies beyond its limit, in words; the worst first"""
    spacing: tuple[Length, Length, Length]
    extent: tuple[Length, Length, Length]
    """of the non-zero box"""
    foreground_voxels: NonNegativeInt
    """of the mask, all classes"""
    outside: dict[str, Share | None]
    """channel to the share of the foreground's voxels whose intensity the plan's fingerprint does not cover; ``None``: not known"""
    folds_dice: dict[str, Share | None]
    """class to the mean Dice of all pairs of folds, ``None`` where none of them found it; empty for a single fold"""
    mirrors_dice: dict[str, Share | None]
    """the same of all pairs of mirrored images; empty without mirroring"""


class QualityTable(Document):
    """``qc.json``."""

    schema_version: Literal[1] = 1
    limits: dict[str, float]
    """from which on a case is flagged"""
    cases: tuple[QualityRow, ...]
    """the worst first"""


def lowest(dice: dict[str, float | None]) -> float | None:
    """The lowest Dice of any class; ``None`` where there is none."""
    return min((value for value in dice.values() if value is not None), default=None)


def worst_first(row: QualityRow) -> tuple[float, str]:
    """The key that sorts rows."""
    return -row.severity, row.case
