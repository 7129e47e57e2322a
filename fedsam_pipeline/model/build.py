"""From a base model, a plan and a recipe to a model that is ready to train."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError, fault_list
from fedsam_pipeline.model.adapter import inject_adapters
from fedsam_pipeline.model.checkpoints import load_base, read_checkpoint
from fedsam_pipeline.model.injection import inject_lora
from fedsam_pipeline.model.lora_residuals import split_residuals
from fedsam_pipeline.model.manifest import freeze_all_but, resolve_manifest
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.tiny_vit import TinyViT
from fedsam_pipeline.model.trained_files import BundleInfo, read_adapter, read_info
from fedsam_pipeline.specs.base_model import BaseModelSpec
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.specs.plans import PREPROCESSING_VERSION, Plans
from fedsam_pipeline.specs.recipe import Recipe

HEAD_SEED = 20240601
"""Seed of what a base model lacks (LoRA's A, the sixteenfold head): the same at every site and in every run, so that all start alike."""


SHOWN_FAULTS = 6


@dataclass(frozen=True)
class AdaptedModel:
    """A model with a recipe's adapter in it, and the manifest of its trained tensors."""

    model: PromptFreeSam
    manifest: Manifest

    def trained_tensors(self) -> dict[str, Tensor]:
        """The trained tensors themselves (not copies), by name."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach() for name in self.manifest.trained_names}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copies ``tensors`` into the model; names must be trained ones and shapes must agree."""
        own = self.trained_tensors()
        for name, tensor in tensors.items():
            if name not in own or own[name].shape != tensor.shape:
                raise FedsamError(
                    "an adapter tensor does not fit the model",
                    found=f"{name} {tuple(tensor.shape)}",
                    expected=f"{tuple(own[name].shape)}" if name in own else "a name of the manifest",
                    fix="use the plans and recipe that the adapter was trained with",
                )
            own[name].copy_(tensor)


def build_base(
    spec: BaseModelSpec,
    *,
    num_classes: int,
    image_size: int,
    weights: Path | None,
    random_encoder: bool = False,
    mixer_depth: int = 0,
    prompted: bool = False,
) -> PromptFreeSam:
    """The base model, frozen and in evaluation mode, BatchNorm folded.

    Args:
        spec: the registry's entry.
        num_classes: background included.
        image_size: pixels.
        weights: checkpoint file; ``None`` seeds everything at random.
        random_encoder: leave the image encoder as seeded; the rest is loaded.
        mixer_depth, prompted: what the plan adds, see ``PromptFreeSam``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(HEAD_SEED)
        model = PromptFreeSam(spec, num_classes, image_size, mixer_depth=mixer_depth, prompted=prompted)
    if weights is not None:
        state = read_checkpoint(spec, weights)
        if random_encoder:
            state |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("image_encoder.")}
        load_base(model, state)
    if isinstance(model.image_encoder, TinyViT):
        model.image_encoder.fold_batch_norm()
    return model.eval().requires_grad_(False)


def resolved_rank(recipe: Recipe, planned_rank: int) -> int:
    """LoRA's rank: the recipe's, or the plan's where the recipe says ``auto``."""
    if recipe.lora is None:
        return 0
    return planned_rank if recipe.lora.rank == "auto" else recipe.lora.rank


def build_adapted(
    base_model: str,
    recipe: Recipe,
    *,
    rank: int,
    num_classes: int,
    image_size: int,
    weights: Path | None,
    random_encoder: bool = False,
    mixer_depth: int = 0,
    prompted: bool = False,
) -> AdaptedModel:
    """The base model with the recipe's adapter. At round 0 it computes what the base model computes. Arguments as ``build_base``.

    Raises:
        FedsamError: the recipe does not fit this encoder, or one of its patterns matches nothing.
    """
    spec = base_model_spec(base_model)
    if spec.encoder not in recipe.encoders:
        raise FedsamError(
            f"recipe {recipe.name} does not fit base model {base_model}",
            found=spec.encoder,
            expected=f"one of {', '.join(recipe.encoders)}",
        )
    model = build_base(
        spec,
        num_classes=num_classes,
        image_size=image_size,
        weights=weights,
        random_encoder=random_encoder,
        mixer_depth=mixer_depth,
        prompted=prompted,
    )
    if recipe.lora is not None:
        inject_lora(model, recipe.lora, rank, HEAD_SEED)
    if recipe.adapter is not None:
        inject_adapters(model, recipe.adapter, HEAD_SEED)
    manifest = resolve_manifest(model, recipe)
    freeze_all_but(model, manifest)
    return AdaptedModel(model, manifest)


def build_planned(plans: Plans, recipe: Recipe, *, rank: int, weights: Path | None, random_encoder: bool = False) -> AdaptedModel:
    """The model of a plan, with the recipe's adapter; see ``build_adapted``."""
    return build_adapted(
        plans.base_model,
        recipe,
        rank=rank,
        num_classes=plans.num_classes,
        image_size=plans.image_size,
        weights=weights,
        random_encoder=random_encoder,
        mixer_depth=plans.slab_depth if plans.slice_mixing == "mixer" else 0,
        prompted=plans.prompts.mode != "auto",
    )


@dataclass(frozen=True)
class ModelSetup:
    """All that decides a model: what the federation agrees to, and where this machine keeps the base weights.

    Attributes:
        plans, recipe: agreed to by hash.
        weights: base checkpoint file; ``None`` seeds the base at random.
        random_encoder: draw the image encoder at random, for control experiments.
        start: a trained fold's folder whose adapter training begins with; ``None``: the adapter as drawn.
        configuration: the views that it trains on.
    """

    plans: Plans
    recipe: Recipe
    weights: Path | None
    random_encoder: bool = False
    start: Path | None = None
    configuration: Configuration = "main"

    @property
    def weights_sha256(self) -> str:
        """The registry's hash of the base weights, or the word ``random``."""
        return "random" if self.weights is None else base_model_spec(self.plans.base_model).weights_sha256

    @property
    def start_sha256(self) -> str:
        """The hash of the adapter that training begins with, or the word ``none``. As its folder states it: ``build`` holds the adapter
        against it."""
        return "none" if self.start is None else read_info(self.start).adapter_sha256

    @property
    def lora_rank(self) -> int:
        """The recipe's rank, or the plan's where the recipe says ``auto``."""
        return resolved_rank(self.recipe, self.plans.training.lora_rank)

    def agreement(self) -> dict[str, str]:
        """What both sides of the wire compare."""
        return {
            "plan_sha256": self.plans.sha256(),
            "recipe_sha256": self.recipe.sha256(),
            "weights_sha256": self.weights_sha256,
            "encoder": "random" if self.random_encoder else "pretrained",
            "start_sha256": self.start_sha256,
            "configuration": self.configuration,
        }

    def build(self) -> AdaptedModel:
        """The model; see ``build_planned``. With ``start``, its adapter is in it.

        Raises:
            FedsamError: that adapter is damaged, belongs to another base model, or has other tensors.
        """
        adapted = build_planned(self.plans, self.recipe, rank=self.lora_rank, weights=self.weights, random_encoder=self.random_encoder)
        if self.start is not None:
            self._load_start(adapted, self.start)
        return adapted

    def _load_start(self, adapted: AdaptedModel, folder: Path) -> None:
        info, manifest, tensors = read_adapter(folder)
        tensors, residuals = split_residuals(tensors)
        base = (info.base_model, info.base_weights_sha256, info.random_encoder)
        own = {entry.name: entry.shape for entry in adapted.manifest.tensors}
        given = {entry.name: entry.shape for entry in manifest.tensors}
        faults = []
        if base != (self.plans.base_model, self.weights_sha256, self.random_encoder):
            faults.append(f"it was trained on {info.base_model}, weights {info.base_weights_sha256[:12]}, not on this run's base model")
        if residuals:
            faults.append("FedEx-LoRA folded residuals into its base weights, which a new run does not have")
        faults += [f"{name}: missing" for name in sorted(own.keys() - given.keys())]
        faults += [f"{name}: not trained by recipe {self.recipe.name}" for name in sorted(given.keys() - own.keys())]
        faults += [f"{name}: {given[name]}, not {own[name]}" for name in sorted(own.keys() & given.keys()) if own[name] != given[name]]
        if faults:
            raise FedsamError(
                "training cannot begin with this adapter",
                path=folder,
                found=fault_list(faults, SHOWN_FAULTS),
                expected=f"an adapter of recipe {self.recipe.name} with LoRA rank {self.lora_rank} for {self.plans.num_classes} classes",
                fix="use the recipe, the base model and a plan with the rank and the labels that it was trained with, or leave --init out",
            )
        adapted.load_tensors(tensors)

    def bundle_info(self, rounds_done: int) -> BundleInfo:
        """What binds an adapter of this setup to its base model; ``write_adapter`` adds the hash."""
        return BundleInfo(
            base_model=self.plans.base_model,
            base_weights_sha256=self.weights_sha256,
            random_encoder=self.random_encoder,
            configuration=self.configuration,
            lora_rank=self.lora_rank,
            rounds_done=rounds_done,
            adapter_sha256="0" * 64,
            preprocessing_version=PREPROCESSING_VERSION,
        )
