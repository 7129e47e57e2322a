"""What FedEx-LoRA folds into the base weights: thin factors ``LAYER.residual_B_TARGET`` (rows, k), ``LAYER.residual_A_TARGET`` (k, in).

Singhal et al., ACL 2025, arXiv:2410.09432; how they come about is in ``federation/lora_aggregation/fedex.py``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.lora import LoRALinear

_B, _A = ".residual_B_", ".residual_A_"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class ResidualTarget:
    """The target of a LoRA layer that a residual belongs to."""

    layer: str
    target: str

    @property
    def b(self) -> str:
        """Name of the residual's left factor."""
        return f"{self.layer}{_B}{self.target}"

    @property
    def a(self) -> str:
        """Name of the residual's right factor."""
        return f"{self.layer}{_A}{self.target}"


def residual_targets(residuals: Tensors) -> list[ResidualTarget]:
    """The targets that have a residual, sorted by name."""
    return [ResidualTarget(*name.rsplit(_B, 1)) for name in sorted(residuals) if _B in name]


def is_residual(name: str) -> bool:
    """Whether a tensor of this name is a residual's factor."""
    return _B in name or _A in name


def split_residuals(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An adapter's own tensors, and the residual factors beside them."""
    residuals = {name: tensor for name, tensor in tensors.items() if is_residual(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in residuals}, residuals


@torch.no_grad()
def fold_residuals(model: nn.Module, residuals: Tensors) -> None:
    """Adds scale * residual_B residual_A to the rows that each target owns of the base weight, in place. Twice folded counts twice.

    Args:
        model: with a ``LoRALinear`` under every layer's name.
        residuals: residual factors of one round, or of all rounds for a model that starts from the base weights.

    Raises:
        FedsamError: the model has no such LoRA layer or target, a factor is missing or not finite, or the shapes do not fit. The model is
            then unchanged.
    """
    changes = [(*_layer(model, target, residuals), target) for target in _all_targets(residuals)]
    for layer, rows, target in changes:
        b, a = (residuals[name].to(layer.weight.device, torch.float64) for name in (target.b, target.a))
        layer.weight[rows] = (layer.weight[rows].double() + layer.scaling * (b @ a)).to(layer.weight.dtype)


@contextmanager
def folded_residuals(model: nn.Module, residuals: Tensors) -> Iterator[None]:
    """``fold_residuals`` for a while; the base weights are bit for bit the old ones afterwards, whatever happens within.

    For a model that serves several sites or runs in turn. Keeps a copy of the weights that it changes.
    """
    kept = [(layer, layer.weight.detach().clone()) for layer in {_layer(model, target, residuals)[0] for target in _all_targets(residuals)}]
    fold_residuals(model, residuals)
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in kept:
                layer.weight.copy_(weight)


def _all_targets(residuals: Tensors) -> list[ResidualTarget]:
    """As ``residual_targets``; every tensor belongs to one of them, and both factors are there."""
    targets = residual_targets(residuals)
    expected = {name for target in targets for name in (target.b, target.a)}
    if expected != set(residuals):
        odd = sorted(expected.symmetric_difference(residuals))
        raise _unfit(f"{odd[0]}: missing, or without its other factor")
    return targets


def _layer(model: nn.Module, target: ResidualTarget, residuals: Tensors) -> tuple[LoRALinear, Tensor]:
    """The layer and the rows of its weight that a residual belongs to."""
    layer = dict(model.named_modules()).get(target.layer)
    found = "no such LoRA layer or target"
    if isinstance(layer, LoRALinear) and target.target in layer.target_names:
        rows = layer.get_buffer(f"rows_{target.target}")
        b, a = residuals[target.b], residuals[target.a]
        if b.ndim == a.ndim == 2 and (len(b), a.shape[1]) == (len(rows), layer.in_features) and b.shape[1] == len(a):
            if bool(torch.isfinite(b).all() and torch.isfinite(a).all()):
                return layer, rows
            found = "NaN or infinite values"
        else:
            found = f"{tuple(b.shape)} and {tuple(a.shape)}, the layer has {len(rows)} rows and {layer.in_features} inputs"
    raise _unfit(f"{target.layer}, target {target.target}: {found}")


def _unfit(found: str) -> FedsamError:
    return FedsamError(
        "a residual of FedEx-LoRA does not fit the model",
        found=found,
        expected="the model of the recipe and plan that the residuals were made with",
        fix="use the recipe, plan and base model of that run",
    )
