"""The files of a trained fold: what its adapter is called, what binds it to its base model, how both are written and read."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path, sha256_file
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.document import Document
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import Recipe

BUNDLE_FILE, PLANS_FILE, RECIPE_FILE, MANIFEST_FILE, ADAPTER_FILE = (
    "bundle.json",
    "plans.json",
    "recipe.json",
    "manifest.json",
    "adapter.safetensors",
)
RETRAIN = "train again, or copy the whole folder again"


class BundleInfo(Document):
    """What binds an adapter to its base model."""

    schema_version: Literal[1] = 1
    base_model: str
    base_weights_sha256: str
    """or the word ``random``"""
    random_encoder: bool = False
    """a control experiment: the image encoder was drawn at random, not loaded"""
    configuration: Configuration = "main"
    """the views that it was trained on and predicts with"""
    lora_rank: int
    rounds_done: PositiveInt
    adapter_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """part of the path of a run that begins with this adapter"""
    preprocessing_version: PositiveInt | None = None
    """``PREPROCESSING_VERSION`` of the code that made the training images; ``None``: written before it was noted"""


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors as safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, temporary)


def load_tensors(path: Path, *, fix: str = RETRAIN) -> dict[str, Tensor]:
    """Reads a safetensors file; ``FedsamError`` when it is missing or broken."""
    try:
        return load_file(path)
    except Exception as error:  # the library raises its own type, OSError and ValueError, all of them for the same reason
        raise FedsamError("a tensor file cannot be read", path=path, found=str(error), expected="a safetensors file", fix=fix) from error


def write_documents(folder: Path, plans: Plans, recipe: Recipe, manifest: Manifest) -> None:
    """Writes what is known before training: plans, recipe, manifest."""
    plans.save(folder / PLANS_FILE)
    recipe.save(folder / RECIPE_FILE)
    manifest.save(folder / MANIFEST_FILE)


def write_adapter(folder: Path, tensors: dict[str, Tensor], info_without_hash: BundleInfo) -> None:
    """Writes the trained tensors and, last, ``bundle.json`` with their hash: a folder with that file is complete."""
    save_tensors(folder / ADAPTER_FILE, tensors)
    values = info_without_hash.to_dict() | {"adapter_sha256": sha256_file(folder / ADAPTER_FILE)}
    BundleInfo.from_dict(values).save(folder / BUNDLE_FILE)


def read_info(folder: Path) -> BundleInfo:
    """What binds the adapter in ``folder`` to its base model, as it was written; the adapter itself is not looked at.

    Raises:
        FedsamError: the file is missing or broken.
    """
    return BundleInfo.load(folder / BUNDLE_FILE, fix=f"{RETRAIN}: this folder holds no finished model")


def read_adapter(folder: Path) -> tuple[BundleInfo, Manifest, dict[str, Tensor]]:
    """What binds the adapter in ``folder`` to its base model, its manifest, and its tensors.

    Raises:
        FedsamError: a file is missing or broken, or the tensors are not those that were written.
    """
    info = read_info(folder)
    manifest = Manifest.load(folder / MANIFEST_FILE, fix=RETRAIN)
    tensors = load_tensors(folder / ADAPTER_FILE)
    found = sha256_file(folder / ADAPTER_FILE)
    if found != info.adapter_sha256:
        raise FedsamError(
            "an adapter fails its hash check", path=folder / ADAPTER_FILE, found=found, expected=info.adapter_sha256, fix=RETRAIN
        )
    return info, manifest, tensors
