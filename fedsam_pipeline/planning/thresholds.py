"""The thresholds of the planner and of quality control, from ``plans/rules.toml``."""

import tomllib
from importlib.resources import files
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.document import Document

RULES_FILE = "rules.toml"
Share = Annotated[float, Field(ge=0, le=1)]


class SpacingRules(Document):
    """See ``plans/rules.toml``, here and below."""

    anisotropy_ratio: float = Field(ge=1)
    anisotropic_quantile: float = Field(ge=0, le=1)


class SliceAxisRules(Document):
    coarse_ratio: float = Field(ge=1)
    tie: float = Field(ge=0)


class TriplanarRules(Document):
    max_spacing_ratio: float = Field(ge=1)


class ImageSizeRules(Document):
    slack: float = Field(ge=0)
    max_side: dict[Literal["tiny_vit", "vit"], PositiveInt]
    magnify_from: float = Field(gt=1)
    window_overlap: float = Field(ge=0, lt=1)


class SlabRules(Document):
    depth_mm: PositiveFloat
    max_object_share: float = Field(gt=0, le=1)
    min_slabs_per_step: PositiveInt


class SliceMixingRules(Document):
    max_spacing_ratio: PositiveFloat
    min_object_slices: float = Field(ge=0)
    min_mixed_slices: int = Field(ge=2)
    min_mixed_slabs: PositiveInt


class IntensityRules(Document):
    ct_names: tuple[str, ...]
    ct_clip: tuple[float, float]
    nonzero_below: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 <= self.ct_clip[0] < self.ct_clip[1] <= 1:
            raise ValueError(f"ct_clip must be two rising quantiles, found {self.ct_clip}")
        return self


class ResamplingRules(Document):
    image_order: Literal[0, 1, 3]
    coarse_order: Literal[0, 1, 3]
    label_order: Literal[0, 1]


class PromptRules(Document):
    mode: Literal["rule", "auto", "box", "point"]
    many_objects: PositiveInt
    small_object_share: float = Field(ge=0, le=1)
    jitter_share: float = Field(ge=0)
    dropout: tuple[Share, Share]


class TrainingRules(Document):
    pixels_per_step: PositiveInt
    min_batch: PositiveInt
    max_batch: PositiveInt
    max_batch_share: float = Field(gt=0, le=1)
    passes: PositiveFloat
    min_steps: PositiveInt
    max_steps: PositiveInt
    local_steps: PositiveInt
    learning_rate: PositiveFloat
    learning_rate_batch: PositiveInt
    lora_ranks: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(min_length=1)
    foreground_fraction: float = Field(ge=0, le=1)
    mirror_axes: tuple[Literal[0, 1, 2], ...]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_batch > self.max_batch or self.min_steps > self.max_steps:
            raise ValueError("min_batch and min_steps must not exceed max_batch and max_steps")
        starts = [cases for cases, _ in self.lora_ranks]
        if starts[0] != 1 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"lora_ranks must start at 1 case and rise, found {starts}")
        return self


class QualityRules(Document):
    spacing_margin: PositiveFloat
    extent_margin: PositiveFloat
    intensity_mass: float = Field(gt=0, le=1)
    max_outside: float = Field(gt=0, lt=1)
    min_agreement: float = Field(gt=0, lt=1)
    usual_foreground: float = Field(gt=0, le=1)


class PostprocessingRules(Document):
    min_volume_shares: tuple[PositiveFloat, ...]


class Thresholds(Document):
    """All of ``plans/rules.toml``."""

    spacing: SpacingRules
    slice_axis: SliceAxisRules
    triplanar: TriplanarRules
    image_size: ImageSizeRules
    slab: SlabRules
    slice_mixing: SliceMixingRules
    intensity: IntensityRules
    resampling: ResamplingRules
    prompts: PromptRules
    training: TrainingRules
    quality: QualityRules
    postprocessing: PostprocessingRules


def load_thresholds() -> Thresholds:
    """The thresholds that come with the package."""
    return parse_thresholds((files("fedsam_pipeline.plans") / RULES_FILE).read_text(encoding="utf-8"))


def parse_thresholds(text: str) -> Thresholds:
    """Thresholds from the text of a rules file.

    Raises:
        FedsamError: not TOML, or a key is missing, unknown or out of range; all of them are named.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FedsamError("the planner's rules are not TOML", path=RULES_FILE, found=str(error), fix="mend plans/rules.toml") from error
    return Thresholds.from_dict(values, path=RULES_FILE, fix="mend plans/rules.toml")
