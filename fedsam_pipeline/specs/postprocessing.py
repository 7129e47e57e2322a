"""Postprocessing: the rules that change a predicted mask, and what each was worth on validation cases when they were chosen."""

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat

from fedsam_pipeline.specs.document import Document, Rule


class MaskRule(Document):
    """One change of a mask. Components: voxels that touch by a face, an edge or a corner (26 neighbours); holes are enclosed by faces."""

    kind: Literal["largest_component", "minimum_volume", "fill_holes"]
    """keep the largest component only; remove components that are smaller; give a class the background that it encloses"""
    label: str | None = None
    """the class; ``None``: all foreground as one, for ``largest_component`` only"""
    min_volume_mm3: PositiveFloat | None = None
    """what a component must have to stay; for ``minimum_volume`` only"""

    def faults(self) -> Iterator[str]:
        """A key that the kind lacks, or does not know."""
        if self.label is None and self.kind != "largest_component":
            yield f"label: {self.kind} needs the name of a class"
        if (self.min_volume_mm3 is None) == (self.kind == "minimum_volume"):
            yield f"min_volume_mm3: {self.kind} {'needs one' if self.min_volume_mm3 is None else 'has none'}"

    rules: ClassVar[tuple[Rule, ...]] = (Rule(("kind", "label", "min_volume_mm3"), faults),)

    def __str__(self) -> str:
        of = "all foreground" if self.label is None else self.label
        if self.kind == "minimum_volume":
            return f"components of {of} from {self.min_volume_mm3:g} mm3"
        return f"{'largest component' if self.kind == 'largest_component' else 'holes filled'} of {of}"


class SummedDelta(Document):
    """The change of Dice of one class, summed over cases of all sites."""

    delta_sum: float
    num_cases: NonNegativeInt


class Decision(Document):
    """One rule that was asked for, after those that were kept before it."""

    rule: MaskRule
    kept: bool
    mean_delta: float | None
    """mean over cases, then classes; ``None`` where no class has a case"""
    classes: dict[str, SummedDelta]
    """by scored name: class or region"""
    why: str


class Postprocessing(Document):
    """``postprocessing.json`` of a run: applied to its masks, in order."""

    schema_version: Literal[1] = 1
    dataset_name: str
    plan_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    steps: tuple[MaskRule, ...]
    decisions: tuple[Decision, ...] = ()
    """all rules that were asked for; empty where that is not told"""
    sites: tuple[str, ...] = ()
    """those that released sums, sorted"""
    why: dict[str, str] = Field(default_factory=dict)
    """``choice``: how the choice went; ``minimum_volume.CLASS``: where the volumes to try come from"""

    def published(self, floor: int) -> Self:
        """For a model handed on: without the decisions where a figure stands for fewer than ``floor`` cases, and without what tells which
        sites had too few patients to say anything."""
        small = any(0 < found.num_cases < floor for decision in self.decisions for found in decision.classes.values())
        why = {key: reason for key, reason in self.why.items() if key != "choice"}
        return self.model_copy(update={"sites": (), "why": why} | ({"decisions": ()} if small else {}))
