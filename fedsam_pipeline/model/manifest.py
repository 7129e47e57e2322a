"""Resolves a recipe's name patterns into the manifest of one model."""

import fnmatch
from collections.abc import Iterator, Sequence

from fedsam_pipeline.errors import FedsamError, fault_list
from fedsam_pipeline.model.encoder_split import frozen_steps
from fedsam_pipeline.model.injection import lora_faults
from fedsam_pipeline.model.sam import ADDED_BY_PLAN, PromptFreeSam
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry
from fedsam_pipeline.specs.recipe import Recipe


def resolve_manifest(model: PromptFreeSam, recipe: Recipe) -> Manifest:
    """The manifest of ``model`` under ``recipe``. What the plan adds to the base model trains and travels with every recipe.

    Args:
        model: with LoRA and adapters in it.
        recipe: the one they were put in by.

    Raises:
        FedsamError: a pattern matches nothing, something is injected but not trained, or something untrained is to travel. Every fault is
            listed.
    """
    parameters = dict(model.named_parameters())
    added = {name for name in parameters if name.startswith(ADDED_BY_PLAN)}
    names = sorted(parameters.keys() - added)
    trained = _matching(list(recipe.parameters.trained_with(model.spec.encoder)), names)
    if faults := list(_faults(model, recipe, names, trained, sorted(added))):
        raise FedsamError(
            f"recipe {recipe.name} does not fit base model {model.spec.name}",
            found=fault_list(faults),
            expected=f"patterns of tensor names, such as {names[0]}",
            fix=f"mend these keys in the recipe; fedsam_recipes -m {model.spec.name} -r fedsam --tensors lists the base model's tensors",
        )
    federated = added.union(_matching(recipe.parameters.federated, trained))
    return Manifest(
        recipe=recipe.name,
        base_model=model.spec.name,
        tensors=tuple(
            TensorEntry(name=name, shape=tuple(parameters[name].shape), dtype="float32", travels="both" if name in federated else "none")
            for name in sorted({*trained, *added})
        ),
    )


def _faults(model: PromptFreeSam, recipe: Recipe, names: Sequence[str], trained: Sequence[str], added: Sequence[str]) -> Iterator[str]:
    if recipe.lora is not None:
        yield from lora_faults(model, recipe.lora)
        if not any(".lora_B_" in name for name in trained):
            yield "lora: no factor B is trained, and B starts at zero, so LoRA changes nothing; train *.lora_B_* or leave the table out"
    if recipe.adapter is not None and not any(".adapter.up." in name for name in trained):
        yield "adapter: no up projection is trained, and they start at zero, so it changes nothing; train *.adapter.* or drop the table"
    if recipe.cache is not None and not frozen_steps(model.image_encoder, trained):
        yield "cache: the encoder trains from its first step on, so there is nothing to keep; train later parts only, or drop the table"
    for pattern, key in recipe.parameters.trained_with(model.spec.encoder).items():
        if not _matching([pattern], names):
            yield f"parameters.{key}: {pattern} matches no tensor"
    for pattern in recipe.optimizer.rate_factors:
        if trained and not _matching([pattern], [*trained, *added]):
            yield f"optimizer.rate_factors: {pattern} matches no trained tensor"
    for pattern in recipe.parameters.federated:
        matched = _matching([pattern], names)
        if not matched:
            yield f"parameters.federated: {pattern} matches no tensor"
        elif trained and not _matching([pattern], trained):
            yield f"parameters.federated: {pattern} matches only tensors that are not trained, such as {matched[0]}"


def _matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def freeze_all_but(model: PromptFreeSam, manifest: Manifest) -> None:
    """Lets gradients flow into the manifest's tensors only."""
    trained = set(manifest.trained_names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
