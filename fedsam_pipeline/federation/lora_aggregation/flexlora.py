"""FlexLoRA: the weighted sum of the products, brought back to the rank by a singular value decomposition.

Bai et al., "Federated fine-tuning of large language models under heterogeneous tasks and client resources", NeurIPS 2024,
arXiv:2402.11505. All sites have one rank here. The best that one pair of factors can do; exact where the sum has no higher rank.

The result is a new basis: optimizer moments of the factors at the sites mean nothing afterwards and must be reset.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsam_pipeline.federation.lora_aggregation.product_svd import balanced_factors
from fedsam_pipeline.federation.lora_aggregation.site_updates import SiteUpdates, Tensors


def flexlora(updates: Mapping[str, Tensors], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Factors U sqrt(S) and sqrt(S) V^T of the weighted sum of products; all other tensors averaged. float32.

    Where the sum of products is zero (nothing was learned yet), the factors are averaged instead: two zero factors would never learn.

    Raises:
        FedsamError: the updates do not fit each other (see ``SiteUpdates``), or hold no LoRA pair.
    """
    sites = SiteUpdates(updates, weights)
    result = sites.means()
    for pair in sites.pairs():
        up, down = sites.values(pair.b), sites.values(pair.a)
        left = torch.cat([share * b for share, b in zip(sites.shares, up, strict=True)], dim=1)
        b, a = balanced_factors(left, torch.cat(down), rank=len(down[0]))
        if b.any():
            result[pair.b], result[pair.a] = b.float(), a.float()
    return result
