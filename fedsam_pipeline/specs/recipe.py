"""Recipe: how to adapt. One published method a file (``plans/recipes/*.toml``), or the user's own."""

import fnmatch
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_toml
from fedsam_pipeline.specs.document import Document, Rule
from fedsam_pipeline.specs.manifest import Wire

Auto = Literal["auto"]
Strategy = Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum", "bulyan"]
LoraMethod = Literal["naive", "ffa", "rolora", "flexlora", "fedex", "lora_fair", "fedrot"]
Weighting = Literal["size", "equal", "validation"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class LoRARecipe(Document):
    """Where LoRA goes. The effective alpha is ``scale * rank``, so that the update's size does not depend on the rank."""

    rank: PositiveInt | Auto
    scale: PositiveFloat
    targets: tuple[Literal["q", "k", "v", "o", "mlp", "hyper"], ...] = Field(min_length=1)
    """projections of the attentions (query, key, value, output); ``mlp``: both layers of the transformer blocks' MLPs; ``hyper``: every
    layer of the decoder's hyper-network MLPs"""
    modules: tuple[str, ...] = Field(min_length=1)
    """name patterns of these layers, matched as ``fnmatch`` does"""
    encoder_share: float = Field(default=1.0, gt=0, le=1)
    """share of the encoder's attention blocks, counted from its output: 1 all of them, 0.5 the later half"""

    def target_faults(self) -> Iterator[str]:
        """Targets that stand twice."""
        if twice := sorted({target for target in self.targets if self.targets.count(target) > 1}):
            yield f"targets: {', '.join(twice)} more than once"

    rules: ClassVar[tuple[Rule, ...]] = (Rule(("targets",), target_faults),)


class AdapterRecipe(Document):
    """Medical SAM Adapter (Wu et al., arXiv:2304.12620) after the attention and beside the MLP of every attention block of the encoder."""

    ratio: float = Field(gt=0, le=4)
    """width of the bottleneck over the width of the block"""
    mlp_scale: PositiveFloat
    """factor of the contribution beside the MLP; the one after the attention counts in full"""


class ParametersRecipe(Document):
    """Name patterns of the parameters. What is not trained is the base model's."""

    trained: tuple[str, ...] = Field(min_length=1)
    federated: tuple[str, ...] = Field(min_length=1)
    """the trained parameters that travel; the others stay at the site"""
    trained_tiny_vit: tuple[str, ...] = ()
    """trained as well where the image encoder is TinyViT: names that only it has"""
    trained_vit: tuple[str, ...] = ()
    """the same for Meta's ViT"""

    def trained_with(self, encoder: Literal["tiny_vit", "vit"]) -> dict[str, str]:
        """Pattern to the key it stands under, of all that trains with this encoder."""
        own = "trained_tiny_vit" if encoder == "tiny_vit" else "trained_vit"
        return {pattern: key for key in ("trained", own) for pattern in getattr(self, key)}


class LossRecipe(Document):
    """``dice_weight`` * soft Dice (foreground classes, over the batch) + ``cross_entropy_weight`` * cross-entropy."""

    dice_weight: float = Field(ge=0)
    cross_entropy_weight: float = Field(ge=0)

    def weight_faults(self) -> Iterator[str]:
        """A loss that is always zero."""
        if self.dice_weight == self.cross_entropy_weight == 0:
            yield "dice_weight: it and cross_entropy_weight are 0, so nothing is learnt"

    rules: ClassVar[tuple[Rule, ...]] = (Rule(("dice_weight", "cross_entropy_weight"), weight_faults),)


class OptimizerRecipe(Document):
    """AdamW (Loshchilov & Hutter, ICLR 2019); moments stay at the site across rounds."""

    name: Literal["adamw"]
    learning_rate: PositiveFloat | Auto
    rate_factors: dict[str, PositiveFloat] = Field(default_factory=dict)
    """name pattern to a factor of the learning rate, such as a smaller one for the base model's own weights (discriminative fine-tuning,
    Howard & Ruder, ACL 2018, arXiv:1801.06146); where several match, the longest counts"""
    weight_decay: float = Field(ge=0)
    betas: tuple[Beta, Beta]
    gradient_clip: PositiveFloat
    """largest gradient norm of a step"""

    def rate_factor(self, name: str) -> float:
        """Learning rate of the parameter ``name`` over that of the schedule."""
        matching = [pattern for pattern in self.rate_factors if fnmatch.fnmatchcase(name, pattern)]
        return self.rate_factors[max(matching, key=lambda pattern: (len(pattern), pattern))] if matching else 1.0


class ScheduleRecipe(Document):
    """Learning rate as a function of round and step only: linear warm-up, then a cosine from 1 to ``final_fraction``."""

    name: Literal["cosine", "constant"]
    warmup_fraction: float = Field(ge=0, lt=1)
    """share of all steps spent warming up"""
    final_fraction: float = Field(ge=0, le=1)


class AggregationRecipe(Document):
    """How the server makes one adapter of many."""

    strategy: Strategy
    """Flower's strategy"""
    lora_method: LoraMethod | None = None
    """treats LoRA's factors as products (``docs/aggregation.md``); left out, they are averaged like any other tensor"""
    weighting: Weighting
    """weight of a site: its number of training cases, the same for all, or more for sites that the shared model serves badly"""
    wire: Wire = "fp32"
    """how states and updates travel, as differences: exactly, in half the bytes, a quarter or an eighth"""
    options: dict[str, float] = Field(default_factory=dict)
    """settings of the strategy and of the LoRA method; what is left out has the default in ``docs/aggregation.md``"""


class CacheRecipe(Document):
    """Training on a finite pool of augmented slabs, so that what the frozen first part of the encoder makes of each is computed once.

    The pool is part of the method: without it every step draws slabs that were never seen before.
    """

    slabs_per_case: PositiveInt
    """slabs that each training case contributes: cut, turned and augmented once, then seen again in every pass over the pool"""


class Recipe(Document):
    """One method. ``auto`` values come from the plan."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    paper: str
    encoders: tuple[Literal["tiny_vit", "vit"], ...] = Field(min_length=1)
    lora: LoRARecipe | None = None
    adapter: AdapterRecipe | None = None
    parameters: ParametersRecipe
    loss: LossRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    aggregation: AggregationRecipe
    cache: CacheRecipe | None = Field(default=None, exclude_if=lambda value: value is None)
    """left out of the document, and so of its hash, where there is none"""

    def injection_faults(self) -> Iterator[str]:
        """Patterns of tensors that only another table would make. What a model's tensors say is judged in ``model/manifest.py``."""
        for table, present, mark in (("lora", self.lora is not None, ".lora_"), ("adapter", self.adapter is not None, ".adapter.")):
            for key in ("trained", "federated", "trained_tiny_vit", "trained_vit"):
                for pattern in getattr(self.parameters, key):
                    if mark in pattern and not present:
                        yield f"parameters.{key}: {pattern} matches nothing, because there is no table [{table}]"

    rules: ClassVar[tuple[Rule, ...]] = (Rule(("lora", "adapter", "parameters"), injection_faults),)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files("fedsam_pipeline.plans") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_file: str) -> Recipe:
    """A recipe of the package by name, or a user's TOML file by path.

    Raises:
        FedsamError: unknown name, missing file, not TOML, or invalid (every fault is listed).
    """
    if name_or_file.endswith(".toml"):
        path = Path(name_or_file)
        return Recipe.from_dict(read_toml(path, what="a recipe file", fix="check -r"), path=path)
    if name_or_file not in recipe_names():
        raise FedsamError(
            "unknown recipe",
            found=name_or_file,
            expected=f"one of {', '.join(recipe_names())}, or a file that ends in .toml",
            fix="use -r default, for example",
        )
    text = (files("fedsam_pipeline.plans") / "recipes" / f"{name_or_file}.toml").read_text(encoding="utf-8")
    return Recipe.from_dict(tomllib.loads(text), path=f"recipes/{name_or_file}.toml")
