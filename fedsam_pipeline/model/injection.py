"""Puts LoRA into the attentions and MLPs of SAM's encoders and mask decoder, and into its hyper-networks, as a recipe says."""

import fnmatch
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fedsam_pipeline.model.lora import LoRALinear
from fedsam_pipeline.model.sam_modules import HyperNetworkMLP
from fedsam_pipeline.model.tiny_vit import WindowAttention
from fedsam_pipeline.specs.recipe import LoRARecipe

ENCODER = "image_encoder."
HYPER_NETWORKS = "mask_decoder.output_hypernetworks_mlps."
MLP_LAYERS = (("fc1", "fc2"), ("lin1", "lin2"))
"""of a transformer block: TinyViT's names, and those of Meta's ViT and of the mask decoder"""


def attention_modules(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """The self-attentions of an image encoder with their names, from input to output: those that hold a fused ``qkv`` projection."""
    return [(name, module) for name, module in encoder.named_modules() if isinstance(getattr(module, "qkv", None), nn.Linear)]


def fused_rows(attention: nn.Module, linear: nn.Linear, target: str) -> Tensor:
    """Output rows of a fused qkv projection that belong to ``q``, ``k`` or ``v``.

    TinyViT orders the rows by head (q, k, v within each); Meta's ViT orders them q, k, v (heads within each).
    """
    part = "qkv".index(target)
    dim = linear.out_features // 3
    if isinstance(attention, WindowAttention):
        head = torch.arange(attention.heads)[:, None]
        size = dim // attention.heads
        return (head * 3 * size + part * size + torch.arange(size)).flatten()
    return torch.arange(part * dim, (part + 1) * dim)


def _projections(model: nn.Module, recipe: LoRARecipe) -> Iterator[tuple[str, nn.Module, str, dict[str, Tensor]]]:
    """Every projection LoRA may go into: its name, its parent, its attribute, and the rows of each wanted target.

    Of the encoder's blocks only the last ``encoder_share`` count, rounded to whole blocks, at least one.
    """
    blocks = attention_modules(model.get_submodule(ENCODER.rstrip(".")))
    late = blocks[-max(1, round(recipe.encoder_share * len(blocks))) :]
    late_attentions = {f"{ENCODER}{name}" for name, _ in late}
    late_blocks = {name.rpartition(".")[0] for name in late_attentions}
    for name, module in model.named_modules():
        if name in late_attentions:
            linear = module.get_submodule("qkv")
            assert isinstance(linear, nn.Linear)
            rows: dict[str, Tensor] = {target: fused_rows(module, linear, target) for target in recipe.targets if target in "qkv"}
            if rows:
                yield f"{name}.qkv", module, "qkv", rows
            if "o" in recipe.targets:
                yield f"{name}.proj", module, "proj", {"o": torch.arange(linear.in_features)}
        elif isinstance(getattr(module, "q_proj", None), nn.Linear):
            for target in (target for target in recipe.targets if target in "qkvo"):
                attribute = "out_proj" if target == "o" else f"{target}_proj"
                linear = getattr(module, attribute)
                yield f"{name}.{attribute}", module, attribute, {target: torch.arange(linear.out_features)}
        elif (names := _mlp_layers(module)) and "mlp" in recipe.targets:
            if not name.startswith(ENCODER) or name.rpartition(".")[0] in late_blocks:
                for attribute in names:
                    linear = module.get_submodule(attribute)
                    assert isinstance(linear, nn.Linear)
                    yield f"{name}.{attribute}", module, attribute, {"mlp": torch.arange(linear.out_features)}
        elif "hyper" in recipe.targets and name.startswith(HYPER_NETWORKS) and isinstance(module, HyperNetworkMLP):
            layers = module.get_submodule("layers")
            for number, linear in layers.named_children():
                assert isinstance(linear, nn.Linear)
                yield f"{name}.layers.{number}", layers, number, {"hyper": torch.arange(linear.out_features)}


def _mlp_layers(module: nn.Module) -> tuple[str, ...]:
    """The two layers of a transformer block's MLP; none where ``module`` is something else."""
    return next((names for names in MLP_LAYERS if all(isinstance(getattr(module, name, None), nn.Linear) for name in names)), ())


def lora_faults(model: nn.Module, recipe: LoRARecipe) -> Iterator[str]:
    """Patterns of ``recipe`` that match none of the projections it may go into, whether LoRA is in them already or not."""
    names = [name for name, *_ in _projections(model, recipe)]
    for pattern in recipe.modules:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            yield f"lora.modules: {pattern} matches none of the {len(names)} layers of these targets, such as {names[0]} and {names[-1]}"


def inject_lora(model: nn.Module, recipe: LoRARecipe, rank: int, seed: int) -> tuple[str, ...]:
    """Replaces the projections that ``recipe`` names by ``LoRALinear``; returns their names.

    Patterns that match nothing are left to ``lora_faults``, so that all faults of a recipe are told at once.

    Args:
        model: SAM with its own parameter names (``image_encoder.…``, ``mask_decoder.…``).
        recipe: targets, name patterns, share of the encoder and alpha.
        rank: the resolved rank.
        seed: of the A factors.
    """
    generator = torch.Generator().manual_seed(seed)
    injected = []
    for name, parent, attribute, rows in list(_projections(model, recipe)):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in recipe.modules):
            linear = getattr(parent, attribute)
            layer = LoRALinear.from_linear(linear, rank=rank, alpha=recipe.scale * rank, targets=_sorted(rows), generator=generator)
            setattr(parent, attribute, layer)
            injected.append(name)
    return tuple(injected)


def _sorted(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {target: rows[target] for target in sorted(rows)}
