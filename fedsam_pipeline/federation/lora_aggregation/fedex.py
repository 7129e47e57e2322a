"""FedEx-LoRA: mean factors, and what they miss is folded into the base weight. Exact at any rank.

Singhal et al., "FedEx-LoRA: exact aggregation for federated and efficient fine-tuning of foundation models", ACL 2025, arXiv:2410.09432.

The residual sum w_i B_i A_i - B A, with B and A the means, equals sum w_i (B_i - B)(A_i - A). Since sum w_i (B_i - B) = 0, any one A_n may
stand for A in the second bracket, which leaves n - 1 blocks: two thin matrices of inner size (n - 1) * rank, which is what travels down
beside the factors. They are named ``LAYER.residual_B_TARGET`` (rows, (n - 1) * rank) and ``LAYER.residual_A_TARGET`` ((n - 1) * rank, in).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.pairs import Pair
from fedsam_pipeline.federation.lora_aggregation.product_svd import balanced_factors
from fedsam_pipeline.federation.lora_aggregation.site_updates import SiteUpdates, Tensors
from fedsam_pipeline.model.lora import LoRALinear

_B, _A = ".residual_B_", ".residual_A_"


def fedex(updates: Mapping[str, Tensors], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Weighted means of all tensors, and beside them the residual factors of every pair, float32. One site has no residual.

    Raises:
        FedsamError: the updates do not fit each other (see ``SiteUpdates``), or hold no LoRA pair.
    """
    sites = SiteUpdates(updates, weights)
    result = sites.means()
    for pair in sites.pairs():
        up, down, mean = sites.values(pair.b), sites.values(pair.a), sites.mean(pair.b)
        if len(sites.sites) > 1:
            blocks = [share * (b - mean) for share, b in zip(sites.shares[:-1], up[:-1], strict=True)]
            result[pair.layer + _B + pair.target] = torch.cat(blocks, dim=1).float()
            result[pair.layer + _A + pair.target] = torch.cat([a - down[-1] for a in down[:-1]]).float()
    return result


def split_residuals(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What ``fedex`` gave, taken apart: the adapter's own tensors, and the residual factors."""
    residuals = {name: tensor for name, tensor in tensors.items() if _B in name or _A in name}
    return {name: tensor for name, tensor in tensors.items() if name not in residuals}, residuals


def add_residuals(total: Tensors, new: Tensors) -> dict[str, Tensor]:
    """The residuals of several rounds as one, float32: factors side by side, brought back to full rank where they outgrow it (exact).

    Args:
        total: residual factors of the rounds so far; may be empty.
        new: of the latest round; may be empty.
    """
    result = {**total, **new}
    for pair in _residual_pairs(new):
        name_b, name_a = pair.layer + _B + pair.target, pair.layer + _A + pair.target
        if name_b in total:
            b = torch.cat([total[name_b], new[name_b]], dim=1).double()
            a = torch.cat([total[name_a], new[name_a]]).double()
            full = min(len(b), a.shape[1])
            b, a = balanced_factors(b, a, full) if b.shape[1] > full else (b, a)
            result[name_b], result[name_a] = b.float(), a.float()
    return result


@torch.no_grad()
def fold_residuals(model: nn.Module, residuals: Tensors) -> None:
    """Adds scale * residual_B residual_A to the rows that each target owns of the base weight, in place. Twice folded counts twice.

    Args:
        model: with a ``LoRALinear`` under every layer's name.
        residuals: residual factors of one round, or of all rounds for a model that starts from the base weights.

    Raises:
        FedsamError: the model has no such LoRA layer or target, or the shapes do not fit it. The model is then unchanged.
    """
    changes = [(_target(model, pair, residuals), pair) for pair in _residual_pairs(residuals)]
    for (layer, rows), pair in changes:
        b, a = (residuals[pair.layer + part + pair.target].to(layer.weight.device, torch.float64) for part in (_B, _A))
        layer.weight[rows] = (layer.weight[rows].double() + layer.scaling * (b @ a)).to(layer.weight.dtype)


@contextmanager
def folded_residuals(model: nn.Module, residuals: Tensors) -> Iterator[None]:
    """``fold_residuals`` for a while; the base weights are bit for bit the old ones afterwards, whatever happens within.

    For a model that serves several sites or runs in turn. Keeps a copy of the weights that it changes.
    """
    kept = [(layer, layer.weight.detach().clone()) for layer in {_target(model, pair, residuals)[0] for pair in _residual_pairs(residuals)}]
    fold_residuals(model, residuals)
    try:
        yield
    finally:
        for layer, weight in kept:
            layer.weight.data.copy_(weight)


def _residual_pairs(residuals: Tensors) -> list[Pair]:
    return [Pair(*name.rsplit(_B, 1)) for name in sorted(residuals) if _B in name]


def _target(model: nn.Module, pair: Pair, residuals: Tensors) -> tuple[LoRALinear, Tensor]:
    """The layer and the rows of its weight that a residual belongs to."""
    layer = dict(model.named_modules()).get(pair.layer)
    found = "no such LoRA layer or target"
    if isinstance(layer, LoRALinear) and pair.target in layer.target_names:
        rows = layer.get_buffer(f"rows_{pair.target}")
        b, a = (residuals[pair.layer + part + pair.target].shape for part in (_B, _A))
        if (b[0], a[1]) == (len(rows), layer.in_features) and b[1] == a[0]:
            return layer, rows
        found = f"{tuple(b)} and {tuple(a)}, the layer has {len(rows)} rows and {layer.in_features} inputs"
    raise FedsamError(
        "a residual of FedEx-LoRA does not fit the model",
        found=f"{pair.layer}, target {pair.target}: {found}",
        expected="the model of the recipe and plan that the residuals were made with",
        fix="use the recipe, plan and base model of that run",
    )
