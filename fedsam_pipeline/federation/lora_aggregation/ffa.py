"""FFA-LoRA: A keeps its random values for the whole run, only B is trained and averaged. Exact.

Sun et al., "Improving LoRA in privacy-preserving federated learning", ICLR 2024, arXiv:2403.12313.
"""

from collections.abc import Mapping

from torch import Tensor

from fedsam_pipeline.federation.lora_aggregation.frozen_factor import mean_beside_frozen
from fedsam_pipeline.federation.lora_aggregation.site_updates import Tensors


def ffa(updates: Mapping[str, Tensors], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Weighted mean of B and of all other tensors, float32. A need not travel; where it does, it must be equal at all sites.

    Raises:
        FedsamError: the updates do not fit each other, hold no B, or an A differs between sites.
    """
    return mean_beside_frozen(updates, weights, "A", "ffa")
