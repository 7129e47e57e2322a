"""``prompts.json``: what a person marked on the images, for ``fedsam_predict --prompts``."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedsam_pipeline.specs.document import Document, Rule

Point = tuple[float, float, float]
"""x, y, z in the patient, mm"""


class ClassPrompts(Document):
    """What is marked of one class on one image, in mm (x, y, z) in the patient."""

    boxes: tuple[tuple[Point, Point], ...] = ()
    """two opposite corners each; the sides run along the patient's axes"""
    points: tuple[Point, ...] = ()
    """in the class"""
    negative_points: tuple[Point, ...] = ()
    """not in the class"""

    @property
    def kinds(self) -> frozenset[str]:
        """The keys that hold something."""
        held = {"boxes": self.boxes, "points": self.points, "negative_points": self.negative_points}
        return frozenset(kind for kind, prompts in held.items() if prompts)

    def turned(self) -> "ClassPrompts":
        """From RAS to LPS or back: x and y change their signs."""
        return ClassPrompts(
            boxes=tuple((_turned(first), _turned(second)) for first, second in self.boxes),
            points=tuple(map(_turned, self.points)),
            negative_points=tuple(map(_turned, self.negative_points)),
        )


def _turned(point: Point) -> Point:
    x, y, z = point
    return 0.0 - x, 0.0 - y, z


class PromptsFile(Document):
    """The prompts of several images: case to class name to prompts."""

    schema_version: Literal[1] = 1
    coordinates: Literal["LPS", "RAS"]
    """where x and y grow to: left and posterior (DICOM, ITK, 3D Slicer's files) or right and anterior (NIfTI, nibabel). No default: the
    wrong one mirrors every prompt"""
    cases: Annotated[dict[str, dict[str, ClassPrompts]], Field(min_length=1)]

    def empty_faults(self) -> Iterator[str]:
        """Cases and classes that are named without a prompt."""
        for case, classes in self.cases.items():
            if not classes:
                yield f"cases.{case}: no class"
            for name, prompts in classes.items():
                if not prompts.kinds:
                    yield f"cases.{case}.{name}: neither boxes nor points nor negative_points"

    rules: ClassVar[tuple[Rule, ...]] = (Rule(("cases",), empty_faults),)

    def of(self, case: str) -> dict[str, ClassPrompts]:
        """The prompts of a case by class name, in LPS; empty where it has none."""
        found = self.cases.get(case, {})
        return found if self.coordinates == "LPS" else {name: prompts.turned() for name, prompts in found.items()}
