"""Plans: how to see the data. Agreed between all sites by hash; every value carries its reason."""

import re
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.canonical import sha256_of
from fedsam_pipeline.specs.document import Document

Spacing = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class ChannelPlan(Document):
    """How the intensities of one channel are normalized.

    ``ct``: clip to ``[clip_low, clip_high]`` (HU), then subtract ``mean`` and divide by ``std``, all of them the federation's.
    ``zscore``: the case's own mean and standard deviation; ``zscore_nonzero``: the same, within the non-zero mask. Both unitless.
    """

    name: str
    scheme: Literal["ct", "zscore", "zscore_nonzero"]
    clip_low: float | None = None
    clip_high: float | None = None
    mean: float | None = None
    std: PositiveFloat | None = None

    @model_validator(mode="after")
    def _ct_has_numbers(self) -> Self:
        numbers = (self.clip_low, self.clip_high, self.mean, self.std)
        if self.scheme == "ct" and any(number is None for number in numbers):
            raise ValueError("scheme ct needs clip_low, clip_high, mean and std")
        return self


class InputTerm(Document):
    """One addend of an encoder input channel: a dataset channel, ``offset`` slices away."""

    channel: int = Field(ge=0)
    offset: int


class PromptPlan(Document):
    """Prompt settings. ``auto`` is prompt-free; ``box`` and ``point`` train with prompts, dropped with probability ``dropout``."""

    mode: Literal["auto", "box", "point"]
    jitter_mm: float = Field(ge=0)
    dropout: float = Field(ge=0, le=1)


class ResamplingPlan(Document):
    """Interpolation orders: 0 nearest, 1 linear, 3 cubic. Labels go class by class (one-hot, linear), then argmax."""

    image_order: Literal[0, 1, 3]
    image_order_coarse_axis: Literal[0, 1, 3]
    label_order: Literal[0, 1]


class TrainingPlan(Document):
    """Defaults of training that follow from the sizes of the dataset and its sites."""

    effective_batch: PositiveInt
    """slices an optimizer step"""
    rounds: PositiveInt
    local_steps: PositiveInt
    """optimizer steps a site takes in one round"""
    learning_rate: PositiveFloat
    lora_rank: PositiveInt
    foreground_fraction: float = Field(ge=0, le=1)
    """share of slabs that are centred on a foreground slice"""
    mirror_axes: tuple[Literal[0, 1, 2], ...]
    """axes (slice, height, width) along which training mirrors slabs"""


RESERVED_NAMES = ("dataset", "fingerprint", "integrity", "splits_final")
"""of other JSON files in a preprocessed folder"""

PREPROCESSING_KEYS = ("target_spacing", "slice_axis", "channels", "resampling")
"""The keys that decide the bytes of the preprocessed store; the others never invalidate it."""
PREPROCESSING_VERSION = 1
"""raised whenever the same plan makes other bytes of the same image"""


class Plans(Document):
    """The plan of one dataset.

    Arrays are ordered (z, y, x) in canonical patient orientation (LPS). The store turns them to (C, S, H, W): slice axis first, the two
    others in their order. ``window`` is (height, width) in voxels at target spacing; it is resized to ``image_size`` square when a slab is
    cut.
    """

    schema_version: Literal[1] = 1
    plans_name: str
    dataset_name: str
    base_model: str
    labels: dict[str, int]
    """label name to value, background 0 included"""
    channels: tuple[ChannelPlan, ...] = Field(min_length=1)
    target_spacing: Spacing
    """mm, (z, y, x)"""
    slice_axis: Literal[0, 1, 2]
    image_size: PositiveInt
    """side of the encoder's square input, pixels"""
    window: tuple[PositiveInt, PositiveInt]
    window_overlap: float = Field(ge=0, lt=1)
    """share of a window that the next one covers again"""
    slab_depth: PositiveInt
    slice_mixing: Literal["none", "neighbours"]
    encoder_inputs: tuple[tuple[InputTerm, ...], tuple[InputTerm, ...], tuple[InputTerm, ...]]
    """per encoder input channel, the terms that are averaged"""
    resampling: ResamplingPlan
    prompts: PromptPlan
    training: TrainingPlan
    fingerprint_sha256: str
    why: dict[str, str]
    """the reason of every planned value, by its (dotted) name"""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        values = sorted(self.labels.values())
        if self.labels.get("background") != 0:
            raise ValueError("labels: background must be 0")
        if values != list(range(len(values))):
            raise ValueError(f"labels: values must be consecutive from 0, found {values}")
        for terms in self.encoder_inputs:
            if not terms or any(term.channel >= len(self.channels) for term in terms):
                raise ValueError("encoder_inputs: every input needs terms, each naming an existing channel")
        return self

    @property
    def num_classes(self) -> int:
        """Classes of the softmax, background included."""
        return len(self.labels)

    @property
    def foreground_names(self) -> tuple[str, ...]:
        """Names of the classes 1, 2, ... in this order."""
        return tuple(sorted((name for name, value in self.labels.items() if value), key=self.labels.__getitem__))

    @property
    def max_offset(self) -> int:
        """Slices a slab needs beyond its own ends for neighbours-in-channels."""
        return max(abs(term.offset) for terms in self.encoder_inputs for term in terms)

    def preprocessing_sha256(self) -> str:
        """Signature of the preprocessed store: the preprocessing keys only."""
        whole = self.model_dump(mode="json")
        return sha256_of({key: whole[key] for key in PREPROCESSING_KEYS} | {"code": PREPROCESSING_VERSION})


def check_plans_name(name: str) -> None:
    """Plans are files beside others: refuses names that are no file name, or another file's."""
    if not re.fullmatch(r"[A-Za-z0-9_\-]+", name) or name in RESERVED_NAMES:
        raise FedsamError(
            "this cannot be the name of a plan",
            found=name,
            expected=f"letters, digits, _ and -, and none of {', '.join(RESERVED_NAMES)}",
            fix="choose another name for -p",
        )
