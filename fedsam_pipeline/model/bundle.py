"""The trained model on disk: everything that prediction needs but the base weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path, sha256_file
from fedsam_pipeline.model.build import AdaptedModel, ModelSetup, build_planned
from fedsam_pipeline.model.lora import merge_lora
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.weights import find_weights
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
    lora_rank: int
    rounds_done: PositiveInt
    adapter_sha256: str


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to predict."""

    model: PromptFreeSam
    plans: Plans

    @property
    def labels(self) -> dict[str, int]:
        """Label name to value, background 0 included."""
        return self.plans.labels


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


def bundle_info(model: ModelSetup, rounds_done: int) -> BundleInfo:
    """What binds an adapter of this setup to its base model; ``write_adapter`` adds the hash."""
    return BundleInfo(
        base_model=model.plans.base_model,
        base_weights_sha256=model.weights_sha256,
        random_encoder=model.random_encoder,
        lora_rank=model.lora_rank,
        rounds_done=rounds_done,
        adapter_sha256="0" * 64,
    )


def write_adapter(folder: Path, tensors: dict[str, Tensor], info_without_hash: BundleInfo) -> None:
    """Writes the trained tensors and, last, ``bundle.json`` with their hash: a folder with that file is complete."""
    save_tensors(folder / ADAPTER_FILE, tensors)
    values = info_without_hash.to_dict() | {"adapter_sha256": sha256_file(folder / ADAPTER_FILE)}
    BundleInfo.from_dict(values).save(folder / BUNDLE_FILE)


def load_bundle(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model of a trained fold: base weights from the cache, adapter from ``folder``, LoRA merged, evaluation mode.

    Raises:
        FedsamError: a file is missing or broken, a hash differs, or the base weights are not in the cache.
    """
    folder = Path(folder)
    info = BundleInfo.load(folder / BUNDLE_FILE, fix=f"{RETRAIN}: this folder holds no finished model")
    plans = Plans.load(folder / PLANS_FILE, fix=RETRAIN)
    recipe = Recipe.load(folder / RECIPE_FILE, fix=RETRAIN)
    manifest = Manifest.load(folder / MANIFEST_FILE, fix=RETRAIN)
    tensors = load_tensors(folder / ADAPTER_FILE)
    found = sha256_file(folder / ADAPTER_FILE)
    if found != info.adapter_sha256:
        raise FedsamError(
            "an adapter fails its hash check", path=folder / ADAPTER_FILE, found=found, expected=info.adapter_sha256, fix=RETRAIN
        )
    adapted = _build(info, plans, recipe)
    if adapted.manifest != manifest or set(tensors) != set(manifest.trained_names):
        raise FedsamError(
            "an adapter does not fit its manifest",
            path=folder,
            found=f"{len(tensors)} tensors",
            expected=f"the {len(manifest.tensors)} tensors of {MANIFEST_FILE}, as recipe {recipe.name} makes them",
            fix=RETRAIN,
        )
    adapted.load_tensors(tensors)
    merge_lora(adapted.model)
    return LoadedModel(adapted.model.eval().requires_grad_(False).to(device), plans)


def _build(info: BundleInfo, plans: Plans, recipe: Recipe) -> AdaptedModel:
    spec = base_model_spec(info.base_model)
    seeded = info.base_weights_sha256 == "random"
    if not seeded and info.base_weights_sha256 != spec.weights_sha256:
        raise FedsamError(
            f"the model was trained on other weights of {info.base_model}",
            found=spec.weights_sha256,
            expected=info.base_weights_sha256,
            fix=RETRAIN,
        )
    weights = None if seeded else find_weights(spec)
    return build_planned(plans, recipe, rank=info.lora_rank, weights=weights, random_encoder=info.random_encoder)
