"""The trained model on disk: everything that prediction needs but the base weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.build import AdaptedModel, build_planned
from fedsam_pipeline.model.lora import lora_layers, merge_lora
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
    folds = FoldModels([folder], device)
    return LoadedModel(folds.model, folds.plans)


class FoldModels:
    """Several trained folds that take turns in one model: the base weights are in memory once, the adapters beside them.

    A fold that has trained all weights brings all of them; of the others only the adapter counts, and the base weights that LoRA is merged
    into are kept a second time, so that a fold computes the same whatever was there before it.

    Args:
        folders: trained folds of one plan, recipe and base model.
        device: of the model; the adapters wait in main memory.

    Attributes:
        model: in evaluation mode; the fold that was last asked for with ``use``, at first the first.
        plans: of all folds.
        configuration: of all folds, too.

    Raises:
        FedsamError: a file is missing or broken, a hash differs, the base weights are not in the cache, or the folds do not fit together.
    """

    def __init__(self, folders: Sequence[Path], device: torch.device | str = "cpu") -> None:
        folder = Path(folders[0])
        self.plans = Plans.load(folder / PLANS_FILE, fix=RETRAIN)
        recipe = Recipe.load(folder / RECIPE_FILE, fix=RETRAIN)
        read = [read_adapter(Path(each)) for each in folders]
        info = read[0][0]
        self.configuration = info.configuration
        adapted = _build(info, self.plans, recipe)
        self._adapters = []
        for each, (own, manifest, tensors) in zip(folders, read, strict=True):
            _check_alike(Path(each), own, folder, info, self.plans, recipe)
            trained, residuals = split_residuals(tensors)
            if adapted.manifest != manifest or set(trained) != set(manifest.trained_names):
                raise FedsamError(
                    "an adapter does not fit its manifest",
                    path=each,
                    found=f"{len(trained)} tensors",
                    expected=f"the {len(manifest.tensors)} tensors of {MANIFEST_FILE}, as recipe {recipe.name} makes them",
                    fix=RETRAIN,
                )
            self._adapters.append((trained, residuals))
        self.model = adapted.model.eval().requires_grad_(False).to(device)
        self._adapted = adapted
        self._base = [(layer, layer.weight.detach().clone()) for layer in lora_layers(self.model)] if len(folders) > 1 else []
        self._used: int | None = None
        for fold in reversed(range(len(folders))):  # what does not fit is found before the work
            self.use(fold)

    def __len__(self) -> int:
        return len(self._adapters)

    def use(self, fold: int) -> None:
        """Puts the adapter of ``folders[fold]`` into the model, LoRA merged."""
        if fold == self._used:
            return
        for layer, weight in self._base:
            layer.restore(weight)
        tensors, residuals = self._adapters[fold]
        self._adapted.load_tensors(tensors)
        fold_residuals(self.model, residuals)
        merge_lora(self.model)
        self._used = fold


def _check_alike(folder: Path, info: BundleInfo, first: Path, expected: BundleInfo, plans: Plans, recipe: Recipe) -> None:
    own_plans, own_recipe = Plans.load(folder / PLANS_FILE, fix=RETRAIN), Recipe.load(folder / RECIPE_FILE, fix=RETRAIN)
    base = (info.base_model, info.base_weights_sha256, info.random_encoder, info.lora_rank)
    wanted = (expected.base_model, expected.base_weights_sha256, expected.random_encoder, expected.lora_rank)
    differing = [
        name
        for name, own, other in (
            ("plan", own_plans.sha256(), plans.sha256()),
            ("recipe", own_recipe.sha256(), recipe.sha256()),
            ("base model or LoRA rank", base, wanted),
            ("configuration", info.configuration, expected.configuration),
        )
        if own != other
    ]
    if differing:
        raise FedsamError(
            "these folds are no models of one kind",
            path=folder,
            found=f"another {', '.join(differing)} than {first.name}",
            expected="folds of one plan, recipe and base model",
            fix="predict with each of them, with --save_probabilities, and average the folders with fedsam_ensemble",
        )


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
