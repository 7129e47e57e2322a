"""Which methods a comparison trains: a grid of flags, or several grids in a TOML file."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat

from fedsam_pipeline.files import read_toml
from fedsam_pipeline.specs.document import Document
from fedsam_pipeline.specs.manifest import Wire

Protocol = Literal["federated", "local", "centralized", "leave_one_site_out"]


class MethodGrid(Document):
    """Every recipe with every learning rate under every protocol; where sites exchange updates, also with every strategy and wire.

    An empty list leaves the choice to the recipe (a learning rate that is ``auto`` there: to the plan).
    """

    recipes: tuple[str, ...] = Field(min_length=1)
    """names, or TOML files"""
    protocols: tuple[Protocol, ...] = Field(default=("federated",), min_length=1)
    strategies: tuple[str, ...] = ()
    """a strategy, or with a LoRA method as ``fedavg+flexlora``"""
    wires: tuple[Wire, ...] = ()
    learning_rates: tuple[PositiveFloat, ...] = ()
    random_encoder: bool = False
    """control experiment: the image encoder is drawn at random"""


class MethodList(Document):
    """The content of a methods file: the rows of the table are those of its grids, one grid after the other."""

    schema_version: Literal[1] = 1
    methods: tuple[MethodGrid, ...] = Field(min_length=1)


def load_methods(path: Path) -> tuple[MethodGrid, ...]:
    """Reads a methods file. Recipes that are files are looked for beside it.

    Raises:
        FedsamError: missing, not TOML, or invalid (every fault is listed).
    """
    grids = MethodList.from_dict(read_toml(path, what="a methods file", fix="check --methods"), path=path, fix="mend these keys").methods

    def beside(recipe: str) -> str:
        return str(path.parent / recipe) if recipe.endswith(".toml") else recipe

    return tuple(grid.model_copy(update={"recipes": tuple(map(beside, grid.recipes))}) for grid in grids)
