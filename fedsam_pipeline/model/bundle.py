"""The trained model on disk: everything that prediction needs but the base weights."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.build import AdaptedModel, build_planned
from fedsam_pipeline.model.lora import merge_lora
from fedsam_pipeline.model.lora_residuals import fold_residuals, split_residuals
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.trained_files import MANIFEST_FILE, PLANS_FILE, RECIPE_FILE, RETRAIN, BundleInfo, read_adapter
from fedsam_pipeline.model.weights import find_weights
from fedsam_pipeline.specs.plans import PREPROCESSING_VERSION, Plans
from fedsam_pipeline.specs.recipe import Recipe


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to predict."""

    model: PromptFreeSam
    plans: Plans

    @property
    def labels(self) -> dict[str, int]:
        """Label name to value, background 0 included."""
        return self.plans.labels


def load_bundle(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model of a trained fold: base weights from the cache, adapter from ``folder``, LoRA merged, evaluation mode.

    Raises:
        FedsamError: a file is missing or broken, a hash differs, or the base weights are not in the cache.
    """
    folder = Path(folder)
    info, manifest, tensors = read_adapter(folder)
    plans = Plans.load(folder / PLANS_FILE, fix=RETRAIN)
    recipe = Recipe.load(folder / RECIPE_FILE, fix=RETRAIN)
    adapted = _build(info, plans, recipe)
    tensors, residuals = split_residuals(tensors)
    if adapted.manifest != manifest or set(tensors) != set(manifest.trained_names):
        raise FedsamError(
            "an adapter does not fit its manifest",
            path=folder,
            found=f"{len(tensors)} tensors",
            expected=f"the {len(manifest.tensors)} tensors of {MANIFEST_FILE}, as recipe {recipe.name} makes them",
            fix=RETRAIN,
        )
    adapted.load_tensors(tensors)
    fold_residuals(adapted.model, residuals)
    merge_lora(adapted.model)
    return LoadedModel(adapted.model.eval().requires_grad_(False).to(device), plans)


def refuse_other_base(info: BundleInfo) -> None:
    """Refuses a model whose base weights, or whose images, are not those of this version.

    Raises:
        FedsamError: the base model is unknown, its weights have another hash, or preprocessing has changed since.
    """
    spec = base_model_spec(info.base_model)
    if info.base_weights_sha256 not in ("random", spec.weights_sha256):
        raise FedsamError(
            f"the model was trained on other weights of {info.base_model}",
            found=spec.weights_sha256,
            expected=info.base_weights_sha256,
            fix=RETRAIN,
        )
    if info.preprocessing_version not in (None, PREPROCESSING_VERSION):
        raise FedsamError(
            "the model was trained on images that this version would make otherwise",
            found=f"version {PREPROCESSING_VERSION} of preprocessing",
            expected=f"version {info.preprocessing_version}",
            fix="install the version of fedsam-pipeline that trained it, or train again",
        )


def _build(info: BundleInfo, plans: Plans, recipe: Recipe) -> AdaptedModel:
    refuse_other_base(info)
    weights = None if info.base_weights_sha256 == "random" else find_weights(base_model_spec(info.base_model))
    return build_planned(plans, recipe, rank=info.lora_rank, weights=weights, random_encoder=info.random_encoder)
