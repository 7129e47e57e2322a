"""FedEx-LoRA: mean factors, and what they miss is folded into the base weight. Exact at any rank.

Singhal et al., "FedEx-LoRA: exact aggregation for federated and efficient fine-tuning of foundation models", ACL 2025, arXiv:2410.09432.

The residual sum w_i B_i A_i - B A, with B and A the means, equals sum w_i (B_i - B)(A_i - A). Since sum w_i (B_i - B) = 0, any one A_n may
stand for A in the second bracket, which leaves n - 1 blocks: two thin matrices of inner size (n - 1) * rank, which is what travels down
beside the factors. They are named ``LAYER.residual_B_TARGET`` (rows, (n - 1) * rank) and ``LAYER.residual_A_TARGET`` ((n - 1) * rank, in).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsam_pipeline.federation.lora_aggregation.product_svd import balanced_factors
from fedsam_pipeline.federation.lora_aggregation.site_updates import SiteUpdates, Tensors
from fedsam_pipeline.model.lora_residuals import ResidualTarget, residual_targets


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
            residual = ResidualTarget(pair.layer, pair.target)
            result[residual.b] = torch.cat(blocks, dim=1).float()
            result[residual.a] = torch.cat([a - down[-1] for a in down[:-1]]).float()
    return result


def add_residuals(total: Tensors, new: Tensors) -> dict[str, Tensor]:
    """The residuals of several rounds as one, float32: factors side by side, brought back to full rank where they outgrow it (exact).

    Args:
        total: residual factors of the rounds so far; may be empty.
        new: of the latest round; may be empty.
    """
    result = {**total, **new}
    for residual in residual_targets(new):
        if residual.b in total:
            b = torch.cat([total[residual.b], new[residual.b]], dim=1).double()
            a = torch.cat([total[residual.a], new[residual.a]]).double()
            full = min(len(b), a.shape[1])
            b, a = balanced_factors(b, a, full) if b.shape[1] > full else (b, a)
            result[residual.b], result[residual.a] = b.float(), a.float()
    return result
