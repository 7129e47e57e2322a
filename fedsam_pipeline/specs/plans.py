"""Plans: how to see the data. Agreed between all sites by hash; every value carries its reason."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, StrictBool, model_serializer

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.canonical import sha256_of
from fedsam_pipeline.specs.document import Document, Rule

# strict: a plan is edited by hand, and "56" or true in place of a number is a slip to name, not to guess at
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, gt=0)]
Number = Annotated[float, Field(strict=True)]
PositiveNumber = Annotated[float, Field(strict=True, gt=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Spacing = tuple[PositiveNumber, PositiveNumber, PositiveNumber]


class ChannelPlan(Document):
    """How the intensities of one channel are normalized.

    ``ct``: clip to ``[clip_low, clip_high]`` (HU), then subtract ``mean`` and divide by ``std``, all of them the federation's.
    ``zscore``: the case's own mean and standard deviation; ``zscore_nonzero``: the same, within the non-zero mask. Both unitless.
    """

    name: str
    scheme: Literal["ct", "zscore", "zscore_nonzero"]
    clip_low: Number | None = None
    clip_high: Number | None = None
    mean: Number | None = None
    std: PositiveNumber | None = None

    def number_faults(self) -> Iterator[str]:
        """What does not fit the scheme; a rule of the plan, so that it hides no other fault of its channels."""
        numbers = {"clip_low": self.clip_low, "clip_high": self.clip_high, "mean": self.mean, "std": self.std}
        missing = [name for name, number in numbers.items() if number is None]
        if self.scheme == "ct" and missing:
            yield f"scheme: ct needs clip_low, clip_high, mean and std; {', '.join(missing)} missing"
        if self.clip_low is not None and self.clip_high is not None and self.clip_low >= self.clip_high:
            yield f"clip_low: {self.clip_low:g} is not below clip_high, {self.clip_high:g}"


class InputTerm(Document):
    """One addend of an encoder input channel: a dataset channel, ``offset`` slices away."""

    channel: Whole = Field(ge=0)
    offset: Whole


class PromptPlan(Document):
    """Prompt settings. ``auto`` is prompt-free; ``box`` and ``point`` train with prompts as well, so that one model serves both."""

    mode: Literal["auto", "box", "point"]
    jitter_mm: Number = Field(ge=0)
    """sides of boxes and places of points are moved by up to so much"""
    dropout: Share
    """how often all prompts of a class are left out of a slab"""
    self_prompt: StrictBool = False
    """prediction goes through the model twice, the second time prompted by what the first found. No rule says so; a person may"""

    def self_prompt_faults(self) -> Iterator[str]:
        """A model that takes no prompts cannot prompt itself."""
        if self.self_prompt and self.mode == "auto":
            yield "self_prompt: true, but a model of mode auto takes no prompts"

    rules: ClassVar[tuple[Rule, ...]] = (Rule(("self_prompt", "mode"), self_prompt_faults),)

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plans that were made before ``self_prompt`` was known keep their hash."""
        return {key: value for key, value in handler(self).items() if key != "self_prompt" or value}


class ResamplingPlan(Document):
    """Interpolation orders: 0 nearest, 1 linear, 3 cubic. Labels go class by class (one-hot, linear), then argmax."""

    image_order: Literal[0, 1, 3]
    image_order_coarse_axis: Literal[0, 1, 3]
    label_order: Literal[0, 1]


class TrainingPlan(Document):
    """Defaults of training that follow from the sizes of the dataset and its sites."""

    effective_batch: Count
    """slices an optimizer step"""
    rounds: Count
    local_steps: Count
    """optimizer steps a site takes in one round"""
    learning_rate: PositiveNumber
    lora_rank: Count
    foreground_fraction: Share
    """share of slabs that are centred on a foreground slice"""
    mirror_axes: tuple[Literal[0, 1, 2], ...]
    """axes (slice, height, width) along which training mirrors slabs"""


RESERVED_NAMES = ("dataset", "fingerprint", "integrity", "splits_final")
"""of other JSON files in a preprocessed folder"""

PREPROCESSING_KEYS = ("target_spacing", "slice_axis", "channels", "resampling")
"""The keys that decide the bytes of the preprocessed store; the others never invalidate it."""
PREPROCESSING_VERSION = 3
"""raised whenever the same plan makes other bytes of the same image, or the store keeps more of a case"""


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
    labels: dict[str, Whole]
    """label name to value, background 0 included"""
    channels: tuple[ChannelPlan, ...] = Field(min_length=1)
    target_spacing: Spacing
    """mm, (z, y, x)"""
    slice_axis: Literal[0, 1, 2]
    image_size: Count
    """side of the encoder's square input, pixels"""
    window: tuple[Count, Count]
    window_overlap: Number = Field(ge=0, lt=1)
    """share of a window that the next one covers again"""
    slab_depth: Count
    slice_mixing: Literal["none", "neighbours", "mixer"]
    """``neighbours``: the slices beside it fill a slice's other encoder inputs; ``mixer``: trained layers mix the slices of a slab after
    the encoder"""
    encoder_inputs: tuple[tuple[InputTerm, ...], tuple[InputTerm, ...], tuple[InputTerm, ...]]
    """per encoder input channel, the terms that are averaged"""
    resampling: ResamplingPlan
    prompts: PromptPlan
    training: TrainingPlan
    fingerprint_sha256: str
    why: dict[str, str]
    """the reason of every planned value, by its (dotted) name"""

    def label_faults(self) -> Iterator[str]:
        """Labels that cannot be classes of one softmax."""
        values = sorted(self.labels.values())
        if self.labels.get("background") != 0:
            yield "labels: background must be 0"
        if values != list(range(len(values))):
            yield f"labels: values must be consecutive from 0, found {values}"

    def channel_faults(self) -> Iterator[str]:
        """Channels whose numbers do not fit their scheme."""
        for number, channel in enumerate(self.channels):
            yield from (f"channels.{number}.{fault}" for fault in channel.number_faults())

    def input_faults(self) -> Iterator[str]:
        """Encoder inputs without a source."""
        for number, terms in enumerate(self.encoder_inputs):
            if not terms:
                yield f"encoder_inputs.{number}: every input needs terms"
            absent = sorted({term.channel for term in terms if term.channel >= len(self.channels)})
            if absent:
                yield f"encoder_inputs.{number}: there is no channel {', '.join(map(str, absent))}"

    def mixing_faults(self) -> Iterator[str]:
        """Slice mixing that the encoder inputs deny."""
        if self.slice_mixing == "none" and any(term.offset for terms in self.encoder_inputs for term in terms):
            yield "slice_mixing: none, but encoder_inputs take terms of other slices (offset is not 0)"
        if self.slice_mixing == "mixer" and self.slab_depth < 2:
            yield f"slice_mixing: a mixer needs slabs of at least 2 slices, slab_depth is {self.slab_depth}"

    def slab_faults(self) -> Iterator[str]:
        """A batch that is no whole number of slabs."""
        if self.training.effective_batch % self.slab_depth:
            yield f"slab_depth: {self.slab_depth} does not divide training.effective_batch, {self.training.effective_batch}"

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(("labels",), label_faults),
        Rule(("channels",), channel_faults),
        Rule(("encoder_inputs", "channels"), input_faults),
        Rule(("encoder_inputs", "slice_mixing", "slab_depth"), mixing_faults),
        Rule(("slab_depth", "training"), slab_faults),
    )

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


def is_plans_name(name: str) -> bool:
    """Plans are files beside others: false for names that are no file name, or another file's."""
    return re.fullmatch(r"[A-Za-z0-9_\-]+", name) is not None and name not in RESERVED_NAMES


def check_plans_name(name: str) -> None:
    """Refuses what ``is_plans_name`` does not know."""
    if not is_plans_name(name):
        raise FedsamError(
            "this cannot be the name of a plan",
            found=name,
            expected=f"letters, digits, _ and -, and none of {', '.join(RESERVED_NAMES)}",
            fix="choose another name for -p",
        )
