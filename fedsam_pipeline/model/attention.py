"""Scaled dot-product attention for the windows of image encoders on CPUs, and torch's fused kernel elsewhere.

Torch's fused CPU kernel is slow at windows of 49 to 784 tokens, above all in the backward pass. Small windows are plain products here. For
large ones the scores of a part of the queries at a time are one product, small enough for the caches, and the backward pass computes them
again instead of keeping them, as FlashAttention does (Dao et al., NeurIPS 2022, arXiv:2205.14135): memory is linear in the tokens.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SMALL_WINDOW = 128
"""keys up to which scores are computed at once and kept for the backward pass: faster than computing them again, and a small part of what
a training step keeps. At 196 tokens of ViT-B both take as long, and the scores are no small part any more"""
SCORES_AT_ONCE = 1 << 21
"""of larger windows: what fits the caches of a few cores"""


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(query key^T + bias) value.

    Args:
        query: (B, heads, M, d), already scaled.
        key: (B, heads, N, d).
        value: (B, heads, N, c).
        bias: (heads, N, N), of the same dtype, where M = N; ``None``: none.

    Returns:
        (B, heads, M, c).
    """
    if query.device.type != "cpu":
        return fused(query, key, value, bias)
    if key.shape[2] <= SMALL_WINDOW:
        return plain(query, key, value, bias)
    flat = (tensor.flatten(0, 1) for tensor in (query, key, value))
    mixed: Tensor = _PartAfterPart.apply(*flat, bias)  # type: ignore[no-untyped-call]
    return mixed.view(*query.shape[:2], *mixed.shape[1:])


def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """``attend`` as it is written."""
    scores = query @ key.transpose(-2, -1)
    if bias is not None:
        scores += bias
    return scores.softmax(dim=-1) @ value


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """``attend`` by torch's own kernel, which wants values as wide as queries."""
    width, wide = value.shape[-1], query.shape[-1]
    value = functional.pad(value, (0, wide - width))
    mask = None if bias is None else bias[None]
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)[..., :width]


def _parts(query: Tensor, key: Tensor, unit: int) -> Iterator[tuple[slice, slice]]:
    """Slices of groups and of their queries whose scores fit ``SCORES_AT_ONCE``; groups in multiples of ``unit``, one unit at least."""
    (groups, queries), keys = query.shape[:2], key.shape[1]
    per_unit = unit * queries * keys
    count = max(1, SCORES_AT_ONCE // per_unit) * unit
    rows = queries if per_unit <= SCORES_AT_ONCE else max(1, SCORES_AT_ONCE // (unit * keys))
    for group in range(0, groups, count):
        for row in range(0, queries, rows):
            yield slice(group, group + count), slice(row, row + rows)


class _PartAfterPart(torch.autograd.Function):
    """``attend`` on (B * heads, M or N, .); saves its arguments and none of the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        ctx.save_for_backward(query, key, value, bias)
        mixed = value.new_empty(*query.shape[:2], value.shape[2])
        with torch.autocast("cpu", enabled=False):
            for group, row in _parts(query, key, _unit(bias)):
                mixed[group, row].baddbmm_(_probabilities(query[group, row], key[group], bias, row), value[group], beta=0)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[3] else None
        with torch.autocast("cpu", enabled=False):
            for group, row in _parts(query, key, _unit(bias)):
                outer, earlier = gradient[group, row], int(row.start > 0)  # other rows have added to keys and values
                weights = _probabilities(query[group, row], key[group], bias, row)
                of_value[group].baddbmm_(weights.transpose(1, 2), outer, beta=earlier)
                of_weights = torch.bmm(outer, value[group].transpose(1, 2))
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                of_query[group, row].baddbmm_(of_scores, key[group], beta=0)
                of_key[group].baddbmm_(of_scores.transpose(1, 2), query[group, row], beta=earlier)
                if of_bias is not None:
                    of_bias[:, row] += of_scores.view(-1, len(bias), *of_scores.shape[1:]).sum(dim=0, dtype=torch.float32)
        return of_query, of_key, of_value, None if of_bias is None else of_bias.to(bias.dtype)


def _unit(bias: Tensor | None) -> int:
    return 1 if bias is None else len(bias)


def _probabilities(query: Tensor, key: Tensor, bias: Tensor | None, row: slice) -> Tensor:
    scores = torch.bmm(query, key.transpose(1, 2))
    if bias is not None:
        scores.view(-1, len(bias), *scores.shape[1:]).add_(bias[:, row])
    return scores.softmax(dim=-1)
