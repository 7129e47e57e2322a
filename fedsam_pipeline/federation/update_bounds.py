"""How far an honest site can have moved: what AdamW does at given rates, whatever the gradients were.

A step of AdamW moves a value w by at most rate * (c + decay * |w|). c bounds |m| / sqrt(v), both with Adam's correction of their bias: m
and v are weighted sums of the same gradients and of their squares, so by the inequality of Cauchy and Schwarz

    c(t)^2 = (1 - b1)^2 (1 - b2^t) / ((1 - b1^t)^2 (1 - b2)) * sum over i < t of (b1^2 / b2)^i

after t steps, finite for all t if b1^2 < b2. Kingma & Ba, ICLR 2015, arXiv:1412.6980, section 2.1, give smaller values for gradients that
do not change much; these hold for all. AdamW: Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101, algorithm 2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fedsam_pipeline.federation.lora_aggregation.methods import LINEAR
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.specs.manifest import Wire
from fedsam_pipeline.specs.recipe import AggregationRecipe, OptimizerRecipe

CARRIED: Mapping[Wire, float] = {"fp32": 0.0, "fp16": 2.0**-10, "int8": 1 / 250, "int4": 0.08}
"""what a difference can owe an earlier one, as a share of that one's largest: half a step of the wire's grid (``codec/wires.py``), and what
that one owed"""
SLACK = 1.25
"""what rounding on the wire can add to a difference: int4's half step is 0.08 of its row's largest"""
ROUNDING = 1e-6
"""of float32, relative to the values"""
_BETWEEN = frozenset({"fedavg", "fedprox", "fedmedian", "fedtrimmedavg", "krum", "bulyan"})


@lru_cache
def adam_reach(beta1: float, beta2: float) -> float:
    """The bound c of the module for any number of steps; infinite where beta1^2 is not below beta2."""
    ratio = beta1**2 / beta2 if beta2 > 0 else math.inf
    if ratio >= 1:
        return math.inf
    steps = np.arange(1, 100_001, dtype=np.float64)
    terms = (1 - ratio**steps) / (1 - ratio)
    squared = (1 - beta1) ** 2 * (1 - beta2**steps) / ((1 - beta1**steps) ** 2 * (1 - beta2)) * terms
    forever = (1 - beta1) ** 2 / ((1 - beta2) * (1 - ratio))
    return math.sqrt(max(float(squared.max()), forever))


@dataclass(frozen=True)
class UpdateBound:
    """How far any value can be from where it was, if every site runs the recipe's optimizer.

    Attributes:
        optimizer: the recipe's.
        path: learning rates of all steps in between, added up; 0: nothing was trained, and nothing can have moved.
    """

    optimizer: OptimizerRecipe
    path: float

    def largest(self, name: str, reference: Tensor) -> Tensor:
        """Largest distance of every value of a tensor from ``reference``; of its shape, float64."""
        path = self.path * self.optimizer.rate_factor(name)
        decay, reach = self.optimizer.weight_decay, adam_reach(*self.optimizer.betas)
        size = reference.detach().cpu().to(torch.float64).abs()
        rounding = ROUNDING * (1 + size)
        if path == 0:
            return rounding
        grown = math.expm1(min(path * decay, 700.0)) / decay if decay > 0 else path  # each step's decay acts on what was moved before
        return grown * (reach + decay * size) * SLACK + rounding

    def check(self, tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
        """Refuses a state that no training by this recipe can have reached.

        Args:
            tensors: what came, by name; finite.
            reference: where it began; the same names and shapes.

        Raises:
            UpdateRefused: a value is too far away; of several tensors the one that is farthest is named.
        """
        excess = {name: self._excess(name, tensor, reference[name]) for name, tensor in tensors.items() if tensor.numel()}
        worst = max(excess, key=excess.__getitem__, default=None)
        if worst is not None and not excess[worst] <= 1:
            raise UpdateRefused(f"{worst}: {excess[worst]:.3g} times farther from where it began than training can have brought it")

    def _excess(self, name: str, tensor: Tensor, reference: Tensor) -> float:
        moved = (tensor.detach().cpu().to(torch.float64) - reference.detach().cpu().to(torch.float64)).abs()
        return float((moved / self.largest(name, reference)).max())


def stays_between(aggregation: AggregationRecipe) -> bool:
    """Whether what the server makes of updates lies between them, value by value, so that their bound is its own: means, medians and
    choices do; a server's own optimizer and methods that change factors, or base weights beside them, do not."""
    return aggregation.strategy in _BETWEEN and (aggregation.lora_method is None or aggregation.lora_method in LINEAR)
