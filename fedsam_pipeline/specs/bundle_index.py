"""The table of contents of a model bundle: what is in the zip, with hashes, and what it needs from outside."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from fedsam_pipeline.specs.base_model import WeightsSource
from fedsam_pipeline.specs.coverage import COVERAGE_FILE
from fedsam_pipeline.specs.document import Document, Rule

FOLD_FILES = ("adapter.safetensors", "bundle.json", "manifest.json", "plans.json", "recipe.json")
"""what every fold holds; prediction needs no more"""
TRAINING_FILE, POSTPROCESSING_FILE = "training.json", "postprocessing.json"
DATASET_FILE = "dataset.json"
"""of a fold in a bundle: its labels and channels alone"""
CARD_FILE, LICENCE_FILE, INDEX_FILE = "MODEL_CARD.md", "BASE_WEIGHTS_LICENCE.txt", "index.json"
INDEX_SCHEMA = 1
"""the one that this version writes and reads"""

FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=200)]
FoldName = Annotated[str, Field(pattern=r"^(all|[0-9]{1,3}(-inner)?)$")]


class Member(Document):
    """One file of the zip."""

    name: str
    num_bytes: NonNegativeInt
    file_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class BundleIndex(Document):
    """``index.json``, the first member of the zip."""

    schema_version: Literal[1] = 1
    made_with: str
    """version of this package"""
    dataset_name: str = Field(pattern=r"^Dataset[0-9]{3}_[A-Za-z0-9_\-]+$", max_length=200)
    configuration: FolderName
    """``RECIPE__PLANS__CONFIGURATION``"""
    run: FolderName
    """``PROTOCOL__STRATEGY__seedN``"""
    base_model: str
    base_weights: WeightsSource | None
    """the registry's entry when the bundle was made; ``None``: no published weights"""
    folds: tuple[FoldName, ...] = Field(min_length=1)
    members: tuple[Member, ...]
    """all but the index itself"""

    def layout_faults(self) -> Iterator[str]:
        """Members that the layout lacks, and those it does not know."""
        names = [member.name for member in self.members]
        folders = [f"fold_{fold}" for fold in self.folds]
        required = {
            CARD_FILE,
            *([LICENCE_FILE] if self.base_weights else []),
            *(f"{folder}/{file}" for folder in folders for file in FOLD_FILES),
        }
        of_folds = (TRAINING_FILE, DATASET_FILE, COVERAGE_FILE)
        optional = {POSTPROCESSING_FILE, *(f"{folder}/{file}" for folder in folders for file in of_folds)}
        if missing := sorted(required.difference(names)):
            yield f"members: {', '.join(missing)} missing"
        if unknown := sorted(set(names) - required - optional):
            yield f"members: {', '.join(ascii(name) for name in unknown)} unknown"
        if len(set(names)) < len(names) or len(set(folders)) < len(folders):
            yield "members: a name or a fold stands twice"

    rules: ClassVar[tuple[Rule, ...]] = (Rule(("members", "folds", "base_weights"), layout_faults),)
