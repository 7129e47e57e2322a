"""How far an honest site can have moved: what AdamW does in so many steps, whatever the gradients were.

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
from fedsam_pipeline.specs.recipe import AggregationRecipe, OptimizerRecipe

WIRE_SLACK = 1.25
"""what rounding on the wire can add: int4 errs by at most (1 + 2^-7) / 14 of a row's largest difference, and adds what it lost before"""
ROUNDING = 1e-6
"""of float32, relative to the values"""
_BETWEEN = frozenset({"fedavg", "fedprox", "fedmedian", "fedtrimmedavg", "krum", "bulyan"})
_BETWEEN_FACTORS = LINEAR | {None, "fedex"}


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
        peak_learning_rate: of the run; a step's is never above it.
        local_steps: of a round.
    """

    optimizer: OptimizerRecipe
    peak_learning_rate: float
    local_steps: int

    def largest(self, name: str, reference: Tensor, rounds: int = 1) -> Tensor:
        """Largest distance of every value of a tensor from ``reference`` after so many rounds; of its shape, float64."""
        path = self.peak_learning_rate * self.optimizer.rate_factor(name) * self.local_steps * rounds
        decay, reach = self.optimizer.weight_decay, adam_reach(*self.optimizer.betas)
        grown = math.expm1(min(path * decay, 700.0)) / decay if decay > 0 else path  # each step's decay acts on what was moved before
        size = reference.detach().cpu().to(torch.float64).abs()
        return grown * (reach + decay * size) * WIRE_SLACK + ROUNDING * (1 + size)

    def check(self, tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, rounds: int = 1) -> None:
        """Refuses a state that no training by this recipe can have reached.

        Args:
            tensors: what came, by name; finite.
            reference: where it began; the same names and shapes.
            rounds: since then; 0: it must be what it was.

        Raises:
            UpdateRefused: a value is too far away.
        """
        if rounds and math.isinf(adam_reach(*self.optimizer.betas)):
            return
        for name, tensor in tensors.items():
            moved = (tensor.detach().cpu().to(torch.float64) - reference[name].detach().cpu().to(torch.float64)).abs()
            excess = (moved / self.largest(name, reference[name], rounds)).max() if moved.numel() else torch.zeros(())
            if excess > 1:
                steps = f"{rounds} rounds of {self.local_steps} steps" if rounds else "no step"
                raise UpdateRefused(f"{name}: {float(excess):.3g} times farther from where it began than {steps} can bring it")


def stays_between(aggregation: AggregationRecipe) -> bool:
    """Whether what the server makes of updates lies between them, value by value, so that their bound is its own: means, medians and
    choices do; a server's own optimizer and methods that re-base LoRA's factors do not."""
    return aggregation.strategy in _BETWEEN and aggregation.lora_method in _BETWEEN_FACTORS
