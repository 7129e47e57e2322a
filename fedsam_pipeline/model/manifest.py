"""Resolves a recipe's name patterns into the manifest of one model."""

import fnmatch
from collections.abc import Sequence

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.sam import ADDED_BY_PLAN, PromptFreeSam
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry
from fedsam_pipeline.specs.recipe import Recipe


def resolve_manifest(model: PromptFreeSam, recipe: Recipe) -> Manifest:
    """The manifest of ``model`` under ``recipe``. What the plan adds to the base model trains and travels with every recipe.

    Raises:
        FedsamError: a pattern matches no tensor, or nothing travels.
    """
    parameters = dict(model.named_parameters())
    added = {name for name in parameters if name.startswith(ADDED_BY_PLAN)}
    trained = _match(recipe.parameters.trained, sorted(parameters.keys() - added), "parameters.trained")
    federated = added.union(_match(recipe.parameters.federated, trained, "parameters.federated"))
    return Manifest(
        recipe=recipe.name,
        base_model=model.spec.name,
        tensors=tuple(
            TensorEntry(name=name, shape=tuple(parameters[name].shape), dtype="float32", travels="both" if name in federated else "none")
            for name in sorted({*trained, *added})
        ),
    )


def _match(patterns: Sequence[str], names: Sequence[str], key: str) -> list[str]:
    useless = [pattern for pattern in patterns if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]
    if useless:
        raise FedsamError(
            "a pattern of the recipe matches no tensor",
            found=f"{key}: {', '.join(useless)}",
            expected=f"patterns that match at least one of {len(names)} names, such as {names[0] if names else '(none)'}",
            fix=f"mend {key} in the recipe",
        )
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def freeze_all_but(model: PromptFreeSam, manifest: Manifest) -> None:
    """Lets gradients flow into the manifest's tensors only."""
    trained = set(manifest.trained_names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
