"""Recipe: how to adapt. One published method a file (``plans/recipes/*.toml``), or the user's own."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.document import Document

Auto = Literal["auto"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class LoRARecipe(Document):
    """Where LoRA goes. The effective alpha is ``scale * rank``, so that the update's size does not depend on the rank."""

    rank: PositiveInt | Auto
    scale: PositiveFloat
    targets: tuple[Literal["q", "k", "v", "o"], ...] = Field(min_length=1)
    modules: tuple[str, ...] = Field(min_length=1)
    """name patterns of the projections, matched as ``fnmatch`` does"""


class ParametersRecipe(Document):
    """Name patterns of the parameters. What is not trained is the base model's."""

    trained: tuple[str, ...] = Field(min_length=1)
    federated: tuple[str, ...] = Field(min_length=1)
    """the trained parameters that travel; the others stay at the site"""


class LossRecipe(Document):
    """``dice_weight`` * soft Dice (foreground classes, over the batch) + ``cross_entropy_weight`` * cross-entropy."""

    dice_weight: float = Field(ge=0)
    cross_entropy_weight: float = Field(ge=0)


class OptimizerRecipe(Document):
    """AdamW (Loshchilov & Hutter, ICLR 2019); moments stay at the site across rounds."""

    name: Literal["adamw"]
    learning_rate: PositiveFloat | Auto
    weight_decay: float = Field(ge=0)
    betas: tuple[Beta, Beta]
    gradient_clip: PositiveFloat
    """largest gradient norm of a step"""


class ScheduleRecipe(Document):
    """Learning rate as a function of round and step only: linear warm-up, then a cosine from 1 to ``final_fraction``."""

    name: Literal["cosine", "constant"]
    warmup_fraction: float = Field(ge=0, lt=1)
    """share of all steps spent warming up"""
    final_fraction: float = Field(ge=0, le=1)


class AggregationRecipe(Document):
    """How the server makes one adapter of many."""

    strategy: Literal["fedavg"]
    weighting: Literal["size", "equal"]
    """weight of a site: its number of training cases, or the same for all"""


class Recipe(Document):
    """One method. ``auto`` values come from the plan."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    paper: str
    encoders: tuple[Literal["tiny_vit", "vit"], ...] = Field(min_length=1)
    lora: LoRARecipe | None = None
    parameters: ParametersRecipe
    loss: LossRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    aggregation: AggregationRecipe


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
        path: Path | str = Path(name_or_file)
        try:
            text = Path(name_or_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FedsamError("a recipe file cannot be read", path=path, found=str(error), fix="check -r") from error
    elif name_or_file in recipe_names():
        path = f"recipes/{name_or_file}.toml"
        text = (files("fedsam_pipeline.plans") / "recipes" / f"{name_or_file}.toml").read_text(encoding="utf-8")
    else:
        raise FedsamError(
            "unknown recipe",
            found=name_or_file,
            expected=f"one of {', '.join(recipe_names())}, or a file that ends in .toml",
            fix="use -r flap_sam, for example",
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FedsamError("a recipe file is not TOML", path=path, found=str(error), fix="mend the file") from error
    return Recipe.from_dict(values, path=path)
