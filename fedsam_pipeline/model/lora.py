"""LoRA for linear layers, fused q/k/v projections included.

``y = W x + b + (alpha / rank) * B A x`` (Hu et al., ICLR 2022, arXiv:2106.09685). A target is a set of output rows with factors of its own:
a plain projection has one target with all rows; a fused qkv projection has the targets ``q`` and ``v``, each with the rows it owns. A is
seeded (Kaiming-uniform), B is zero, so at round 0 the layer is the base layer.

The weight and bias keep their names, so that the base model's checkpoint still loads; the factors are ``lora_A_q``, ``lora_B_q`` and so on.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsam_pipeline.model.cast_linear import CastLinear, autocast_type


class LoRALinear(CastLinear):
    """A linear layer with LoRA on some or all of its output rows.

    Attributes:
        enabled: with ``False`` the layer is exactly the base layer (and stays so until enabled again).
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, rank: int, alpha: float, targets: Mapping[str, Tensor]) -> None:
        """``targets``: name to the 1D tensor of output rows."""
        super().__init__(in_features, out_features, bias=bias)
        self.rank = rank
        self.scaling = alpha / rank
        self.enabled = True
        self._merged = False
        self.target_names = tuple(targets)
        for name, rows in targets.items():
            self.register_buffer(f"rows_{name}", rows.clone(), persistent=False)
            self.register_parameter(f"lora_A_{name}", nn.Parameter(torch.empty(rank, in_features)))
            self.register_parameter(f"lora_B_{name}", nn.Parameter(torch.zeros(len(rows), rank)))

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, rank: int, alpha: float, targets: Mapping[str, Tensor], generator: torch.Generator) -> Self:
        """Takes over the parameters of ``linear``; A is drawn from ``generator``."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, rank=rank, alpha=alpha, targets=targets)
        layer.weight, layer.bias = linear.weight, linear.bias
        bound = 1 / math.sqrt(linear.in_features)  # Kaiming-uniform with a = sqrt(5), as in the reference implementation
        for name in layer.target_names:
            factor = layer.get_parameter(f"lora_A_{name}")
            factor.data.copy_((torch.rand(factor.shape, generator=generator, device=generator.device) * 2 - 1) * bound)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        if self._merged or not self.enabled:
            return super().forward(x)
        rows = x.flatten(0, -2).to(autocast_type(x.device) or x.dtype)  # once, and not for each product
        down, up = self._stacked_factors()
        weight, bias = self._operands()
        change = functional.linear(functional.linear(rows, down), up, bias)
        return change.addmm_(rows, weight.t().to(rows.dtype)).view(*x.shape[:-1], self.out_features)  # no pass for a sum

    def _stacked_factors(self) -> tuple[Tensor, Tensor]:
        """All targets as one pair: A stacked (targets * rank, in), scaled B scattered into a block matrix (out, targets * rank)."""
        down = torch.cat([self.get_parameter(f"lora_A_{name}") for name in self.target_names])
        blocks = []
        for name in self.target_names:
            factor = self.get_parameter(f"lora_B_{name}") * self.scaling
            rows = self.get_buffer(f"rows_{name}")
            blocks.append(
                factor if len(rows) == self.out_features else factor.new_zeros(self.out_features, self.rank).index_copy(0, rows, factor)
            )
        return down, torch.cat(blocks, dim=1)

    @property
    def merged(self) -> bool:
        """Whether the change is in the weight now."""
        return self._merged

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The weight change (out, in) that LoRA stands for."""
        down, up = self._stacked_factors()
        return up @ down

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the change to the weight. Merging a merged layer changes nothing."""
        if not self._merged and self.enabled:
            self.weight += self.delta()
            self._merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Takes the change out of the weight again. Unmerging an unmerged layer changes nothing."""
        if self._merged:
            self.weight -= self.delta()
            self._merged = False

    @torch.no_grad()
    def restore(self, weight: Tensor) -> None:
        """Puts this base weight (out, in) in place, bit for bit, and nothing is merged. Unmerging leaves rounding errors."""
        self.weight.copy_(weight)
        self._merged = False


def lora_layers(model: nn.Module) -> list[LoRALinear]:
    """All LoRA layers of ``model``."""
    return [module for module in model.modules() if isinstance(module, LoRALinear)]


def merge_lora(model: nn.Module) -> None:
    """Merges every LoRA layer of ``model``; idempotent."""
    for layer in lora_layers(model):
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Unmerges every LoRA layer of ``model``; idempotent."""
    for layer in lora_layers(model):
        layer.unmerge()


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """``merge_lora`` for a while; the base weights are bit for bit the old ones afterwards, whatever happens within.

    For a model that goes on training. Keeps a copy of the weights that it changes; layers that were merged before stay so.
    """
    kept = [(layer, layer.weight.detach().clone()) for layer in lora_layers(model) if layer.enabled and not layer.merged]
    merge_lora(model)
    try:
        yield
    finally:
        for layer, weight in kept:
            layer.restore(weight)
