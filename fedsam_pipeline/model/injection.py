"""Puts LoRA into the attentions of SAM's encoders and mask decoder, as a recipe says."""

import fnmatch
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.lora import LoRALinear
from fedsam_pipeline.model.tiny_vit import WindowAttention
from fedsam_pipeline.specs.recipe import LoRARecipe


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


def _projections(model: nn.Module, targets: tuple[str, ...]) -> Iterator[tuple[str, nn.Module, str, dict[str, Tensor]]]:
    """Every projection LoRA may go into: its name, its parent, its attribute, and the rows of each wanted target."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear):
            linear = module.qkv
            assert isinstance(linear, nn.Linear)
            rows = {target: fused_rows(module, linear, target) for target in targets if target in "qkv"}
            if rows:
                yield f"{name}.qkv", module, "qkv", rows
            if "o" in targets:
                yield f"{name}.proj", module, "proj", {"o": torch.arange(linear.in_features)}
        elif isinstance(getattr(module, "q_proj", None), nn.Linear):
            for target in targets:
                attribute = "out_proj" if target == "o" else f"{target}_proj"
                linear = getattr(module, attribute)
                yield f"{name}.{attribute}", module, attribute, {target: torch.arange(linear.out_features)}


def inject_lora(model: nn.Module, recipe: LoRARecipe, rank: int, seed: int) -> tuple[str, ...]:
    """Replaces the projections that ``recipe`` names by ``LoRALinear``; returns their names.

    Args:
        model: SAM with its own parameter names (``image_encoder.…``, ``mask_decoder.…``).
        recipe: targets, name patterns and alpha.
        rank: the resolved rank.
        seed: of the A factors.

    Raises:
        FedsamError: a pattern matches no projection.
    """
    generator = torch.Generator().manual_seed(seed)
    candidates = list(_projections(model, recipe.targets))
    for pattern in recipe.modules:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, *_ in candidates):
            raise FedsamError(
                "a LoRA pattern of the recipe matches no attention projection",
                found=pattern,
                expected=f"a pattern that matches one of {len(candidates)} names, such as {candidates[0][0] if candidates else '(none)'}",
                fix="mend lora.modules in the recipe",
            )
    injected = []
    for name, parent, attribute, rows in candidates:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in recipe.modules):
            linear = getattr(parent, attribute)
            layer = LoRALinear.from_linear(linear, rank=rank, alpha=recipe.scale * rank, targets=_sorted(rows), generator=generator)
            setattr(parent, attribute, layer)
            injected.append(name)
    return tuple(injected)


def _sorted(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {target: rows[target] for target in sorted(rows)}
