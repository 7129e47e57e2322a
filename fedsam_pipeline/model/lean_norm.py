"""LayerNorm between a residual stream in float32 and layers that compute in autocast's type."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from fedsam_pipeline.model.cast_linear import autocast_type


class LeanNorm(nn.LayerNorm):
    """``nn.LayerNorm``, which under autocast on a CPU gives autocast's type and, where it is frozen, keeps its input in it.

    Mean and deviation are those of the input itself. The rounded copy has a part in the input's gradient alone, and is as exact as what the
    layers around it keep; in float32 the inputs would be a quarter of what a step of ViT-B keeps. Gradients of a norm that trains would be
    summed from it over all tokens: such a norm is torch's own.
    """

    @classmethod
    def of(cls, plain: nn.Module) -> Self:
        """Takes over the parameters of a LayerNorm over the last axis."""
        assert isinstance(plain, nn.LayerNorm)
        with torch.device("meta"):
            norm = cls(plain.normalized_shape, eps=plain.eps)
        norm.weight, norm.bias = plain.weight, plain.bias
        return norm.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        dtype = None if torch.compiler.is_compiling() else autocast_type(x.device)
        trains = self.weight.requires_grad or self.bias.requires_grad
        if dtype is None or trains or x.device.type != "cpu" or x.dtype != torch.float32 or not x.requires_grad:
            return super().forward(x)
        normalized: Tensor = _KeepsRounded.apply(x, self.weight, self.bias, self.eps, dtype)  # type: ignore[no-untyped-call]
        return normalized


class _KeepsRounded(torch.autograd.Function):
    """LayerNorm of (..., C) float32, its output and what it saves of its input in ``dtype``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        normalized, mean, inverse_deviation = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x.to(dtype), mean, inverse_deviation, weight, bias)
        return normalized.to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse_deviation, weight, bias = ctx.saved_tensors
        of_x, *_ = torch.ops.aten.native_layer_norm_backward(
            gradients[0], x, weight.shape, mean, inverse_deviation, weight, bias, [True, False, False]
        )
        return of_x.float(), None, None, None, None
