"""What preprocessing did to one case: all that is needed to bring a prediction back to the scanner's grid."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedsam_pipeline.specs.document import Document

Size = tuple[PositiveInt, PositiveInt, PositiveInt]
Start = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class CaseProperties(Document):
    """One case on its way through preprocessing. Sizes and spacings are ordered (z, y, x), lengths in mm.

    "Original" is the grid of the file, "canonical" the same voxels turned to LPS, "crop" the box of non-zero voxels in the canonical
    volume, "resampled" that box at the plan's target spacing, before the slice axis is moved to the front.
    """

    case: str
    site: str | None = None
    original_size: Size
    original_spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    original_origin: tuple[float, float, float]
    """SimpleITK's (x, y, z), mm"""
    original_direction: Annotated[tuple[float, ...], Field(min_length=9, max_length=9)]
    """SimpleITK's direction cosines, row by row"""
    canonical_size: Size
    crop_start: Start
    crop_size: Size
    resampled_size: Size
    slice_axis: Literal[0, 1, 2]
    """the axis of the resampled volume that the store puts first"""
    input_files: tuple[str, ...] = ()
    """names of the image files, one a channel"""

    @model_validator(mode="after")
    def _crop_inside(self) -> Self:
        for start, length, size in zip(self.crop_start, self.crop_size, self.canonical_size, strict=True):
            if start + length > size:
                raise ValueError(f"the crop {self.crop_start} + {self.crop_size} leaves the volume {self.canonical_size}")
        if sorted(self.canonical_size) != sorted(self.original_size):
            raise ValueError(f"canonical_size {self.canonical_size} is no permutation of original_size {self.original_size}")
        return self

    @property
    def stored_size(self) -> tuple[int, int, int]:
        """(S, H, W) of the stored case: the resampled size with the slice axis first."""
        first = self.resampled_size[self.slice_axis]
        height, width = (length for axis, length in enumerate(self.resampled_size) if axis != self.slice_axis)
        return first, height, width
