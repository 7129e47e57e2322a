"""RoLoRA: rounds alternate between the factors. Exact in every round, and both factors learn.

Chen et al., "Robust federated finetuning of LLMs via alternating optimization of LoRA", NeurIPS 2025, arXiv:2502.01755. Odd rounds train
B: it is zero at first, and while it is zero A has no gradient.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from fedsam_pipeline.federation.lora_aggregation.frozen_factor import mean_beside_frozen
from fedsam_pipeline.federation.lora_aggregation.pairs import FactorKind, factor_kind
from fedsam_pipeline.federation.lora_aggregation.site_updates import Tensors


def frozen_in(round_number: int) -> FactorKind:
    """The factor that nobody trains in a round; rounds count from 1."""
    return "A" if round_number % 2 == 1 else "B"


def trained_in(names: Iterable[str], round_number: int) -> list[str]:
    """Those of ``names`` that are trained in a round, in their order: all but the frozen factors."""
    return [name for name in names if factor_kind(name) != frozen_in(round_number)]


def rolora(updates: Mapping[str, Tensors], weights: Mapping[str, float], round_number: int) -> dict[str, Tensor]:
    """Weighted mean of this round's factors and of all other tensors, float32.

    The frozen factors need not travel; where they do, they must be equal at all sites.

    Raises:
        FedsamError: the updates do not fit each other, hold none of the trained factors, or a frozen one differs between sites.
    """
    return mean_beside_frozen(updates, weights, frozen_in(round_number), "rolora")
