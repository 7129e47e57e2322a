"""What recipes train and send, for choosing among them: counted on shapes alone, so no weights are needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.strategy_settings import require_lossless, strategy_settings
from fedsam_pipeline.model.build import build_adapted, resolved_rank
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.specs.recipe import load_recipe

REFERENCE = "fedsam"
"""the recipe that sends everything"""


@dataclass(frozen=True)
class Setting:
    """What decides the tensors of a recipe besides the recipe.

    Attributes:
        base_model: a name of the registry.
        image_size: side in pixels, a multiple of the base model's ``window_multiple``.
        num_foreground: classes without the background.
        rank: of LoRA, where a recipe says ``auto``.
    """

    base_model: str
    image_size: int
    num_foreground: int
    rank: int

    def manifest(self, recipe: str) -> Manifest:
        """The manifest of a recipe, given by name or file; ``FedsamError`` where it is unknown, invalid, does not fit,
        or says of aggregation what training refuses."""
        loaded = load_recipe(recipe)
        strategy_settings(loaded.aggregation.strategy, loaded.aggregation.lora_method, loaded.aggregation.options)
        require_lossless(loaded.aggregation.lora_method, loaded.aggregation.wire)
        multiple = base_model_spec(self.base_model).window_multiple
        if self.image_size % multiple:
            raise FedsamError(
                f"the image size does not fit the attention windows of {self.base_model}",
                found=self.image_size,
                expected=f"a multiple of {multiple}",
                fix=f"use --image_size {multiple}, for example",
            )
        with torch.device("meta"):
            adapted = build_adapted(
                self.base_model,
                loaded,
                rank=resolved_rank(loaded, self.rank),
                num_classes=self.num_foreground + 1,
                image_size=self.image_size,
                weights=None,
            )
        return adapted.manifest


def manifests(recipes: Sequence[str], setting: Setting) -> list[Manifest]:
    """The manifests of ``recipes``, the one that sends most first."""
    return sorted((setting.manifest(recipe) for recipe in recipes), key=lambda manifest: -manifest.federated_parameters)


def recipe_records(found: Sequence[Manifest]) -> list[dict[str, str | int]]:
    """One JSON object a manifest: values trained, values that travel, and their bytes one way."""
    return [
        {
            "recipe": manifest.recipe,
            "trained_parameters": manifest.trained_parameters,
            "federated_parameters": manifest.federated_parameters,
            "bytes_fp32": manifest.payload_bytes("fp32"),
            "bytes_fp16": manifest.payload_bytes("fp16"),
            "bytes_int8": manifest.payload_bytes("int8"),
        }
        for manifest in found
    ]


def recipe_table(found: Sequence[Manifest], setting: Setting) -> str:
    """A table for people: the same figures, and how many times fewer bytes than full fine-tuning a recipe sends in fp32."""
    whole = setting.manifest(REFERENCE).payload_bytes("fp32")
    width = max(6, *(len(manifest.recipe) for manifest in found))
    lines = [
        f"{setting.base_model}, {setting.image_size} px, {setting.num_foreground} foreground classes, LoRA rank {setting.rank} where auto;"
        " bytes one way, a site and round, before entropy coding",
        f"{'recipe':<{width}}  {'trained':>12}  {'federated':>12}  {'bytes fp32':>14}  {'fp16':>13}  {'int8':>13}  less than {REFERENCE}",
    ]
    for record in recipe_records(found):
        times = whole / int(record["bytes_fp32"])
        lines.append(
            f"{record['recipe']:<{width}}  {record['trained_parameters']:>12,}  {record['federated_parameters']:>12,}"
            f"  {record['bytes_fp32']:>14,}  {record['bytes_fp16']:>13,}  {record['bytes_int8']:>13,}  {times:>15.1f}x"
        )
    return "\n".join(lines)


def tensor_list(manifest: Manifest) -> str:
    """Every trained tensor of a manifest: name, shape, and whether it travels."""
    width = max(len(entry.name) for entry in manifest.tensors)
    words = {"both": "travels", "none": "stays at the site"}
    lines = [f"{manifest.recipe} on {manifest.base_model}:"]
    lines += [
        f"  {entry.name:<{width}}  {'x'.join(map(str, entry.shape)) or '1':<14}  {words[entry.travels]}" for entry in manifest.tensors
    ]
    return "\n".join(lines)
