"""Whether a trained fold's files fit each other and this version of the code, told without base weights and without computing anything."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fedsam_pipeline.errors import FedsamError, fault_list
from fedsam_pipeline.model.build import build_planned, resolved_rank
from fedsam_pipeline.model.bundle import refuse_other_base
from fedsam_pipeline.model.lora_residuals import split_residuals
from fedsam_pipeline.model.plan_rules import BASE_MODEL_RULES
from fedsam_pipeline.model.trained_files import MANIFEST_FILE, PLANS_FILE, RECIPE_FILE, RETRAIN, BundleInfo, read_adapter
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import Recipe

_SHOWN = 6


@dataclass(frozen=True)
class TrainedFold:
    """The documents of a trained fold, checked."""

    folder: Path
    info: BundleInfo
    plans: Plans
    recipe: Recipe
    manifest: Manifest


def check_fold(folder: Path, *, fix: str = RETRAIN) -> TrainedFold:
    """Reads a trained fold and holds it against the model that this version would build for it, on shapes alone.

    Raises:
        FedsamError: a file is missing, broken or of another schema version; a hash differs; base model, plan, recipe, manifest and tensors
            do not fit each other (every such fault is named); a tensor is not finite; or this version of the code would build another model
            or make other images of the same plan.
    """
    info, manifest, tensors = read_adapter(folder)
    plans = Plans.load(folder / PLANS_FILE, fix=fix, rules=BASE_MODEL_RULES)
    recipe = Recipe.load(folder / RECIPE_FILE, fix=fix)
    refuse_other_base(info)
    own, _ = split_residuals(tensors)
    faults = []
    if not info.base_model == plans.base_model == manifest.base_model:
        faults.append(
            f"base models {info.base_model} (bundle.json), {plans.base_model} ({PLANS_FILE}), {manifest.base_model} ({MANIFEST_FILE})"
        )
    if manifest.recipe != recipe.name:
        faults.append(f"recipes {recipe.name} ({RECIPE_FILE}) and {manifest.recipe} ({MANIFEST_FILE})")
    if info.lora_rank != resolved_rank(recipe, plans.training.lora_rank):
        faults.append(f"LoRA rank {info.lora_rank} (bundle.json), {resolved_rank(recipe, plans.training.lora_rank)} by recipe and plan")
    if not faults:  # the model would be of one of them only
        with torch.device("meta"):
            built = build_planned(plans, recipe, rank=info.lora_rank, weights=None).manifest
        faults += _differences(built, manifest)
    shapes = {entry.name: entry.shape for entry in manifest.tensors}
    faults += [f"{name}: no tensor" for name in sorted(shapes.keys() - own.keys())]
    faults += [f"{name}: a tensor that {MANIFEST_FILE} lacks" for name in sorted(own.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & own.keys()):
        if tuple(own[name].shape) != shapes[name] or own[name].dtype != torch.float32:
            faults.append(f"{name}: {tuple(own[name].shape)} {own[name].dtype}, not {shapes[name]} torch.float32")
    faults += [f"{name}: NaN or infinite values" for name in sorted(tensors) if not bool(torch.isfinite(tensors[name]).all())]
    if faults:
        raise FedsamError(
            "the files of a trained fold do not fit each other, or this version",
            path=folder,
            found=fault_list(faults, _SHOWN),
            expected=f"the tensors that recipe {recipe.name} makes of {plans.base_model} with this version of fedsam-pipeline",
            fix=fix,
        )
    return TrainedFold(folder, info, plans, recipe, manifest)


def _differences(built: Manifest, manifest: Manifest) -> list[str]:
    here, there = ({entry.name: entry for entry in each.tensors} for each in (built, manifest))
    faults = [f"{name}: this version trains it, the manifest does not" for name in sorted(here.keys() - there.keys())]
    faults += [f"{name}: the manifest trains it, this version does not" for name in sorted(there.keys() - here.keys())]
    for name in sorted(here.keys() & there.keys()):
        if here[name].shape != there[name].shape:
            faults.append(f"{name}: {here[name].shape} in this version, {there[name].shape} in the manifest")
        elif here[name].travels != there[name].travels:
            faults.append(f"{name}: travels {here[name].travels} in this version, {there[name].travels} in the manifest")
    return faults
