"""Factor by factor: mean A and mean B.

As in FedIT (Zhang et al., "Towards building the federated GPT", ICASSP 2024, arXiv:2305.05644). Not exact: mean(B) mean(A) is not
mean(B A) unless all sites share one of the factors.
"""

from collections.abc import Mapping

from torch import Tensor

from fedsam_pipeline.federation.lora_aggregation.site_updates import SiteUpdates, Tensors


def naive(updates: Mapping[str, Tensors], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Weighted mean of every tensor, factors and others, float32.

    Raises:
        FedsamError: the updates do not fit each other (see ``SiteUpdates``), or hold no LoRA pair.
    """
    sites = SiteUpdates(updates, weights)
    sites.pairs()
    return sites.means()
