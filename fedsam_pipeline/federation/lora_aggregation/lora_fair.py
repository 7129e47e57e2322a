"""LoRA-FAIR: mean factors, and a correction of B on the server that brings B A near the mean product while B stays near the mean B.

Bian et al., "LoRA-FAIR: federated LoRA fine-tuning with aggregation and initialization refinement", ICCV 2025, arXiv:2411.14961: D
minimizes S(sum w_i B_i A_i, (B + D) A) + lambda |D|, where they measure S by cosine similarity and search D by gradient descent. Here S is
the squared Frobenius distance, which unlike the cosine also fixes the length of the update, and the penalty is squared: a ridge regression
with one solution in closed form, the same on every machine,

    D = (sum w_i B_i A_i A^T - B A A^T) (A A^T + lambda t I)^-1,    t = trace(A A^T) / rank,

where t makes lambda independent of the size of A. Not exact: the mean A spans fewer directions than the sites' own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsam_pipeline.federation.lora_aggregation.site_updates import SiteUpdates, Tensors


def lora_fair(updates: Mapping[str, Tensors], weights: Mapping[str, float], regularization: float) -> dict[str, Tensor]:
    """Mean A, corrected mean B, and the mean of all other tensors, float32.

    Args:
        updates: tensors by site.
        weights: by site.
        regularization: lambda above 0; large values give the plain means.

    Raises:
        FedsamError: the updates do not fit each other (see ``SiteUpdates``), or hold no LoRA pair.
    """
    sites = SiteUpdates(updates, weights)
    result = sites.means()
    for pair in sites.pairs():
        a, b = sites.mean(pair.a), sites.mean(pair.b)
        gram = a @ a.T
        size = gram.trace() / len(gram)
        if size == 0:  # a zero A carries no product: nothing to correct
            continue
        missed = -b @ gram
        for share, site_b, site_a in zip(sites.shares, sites.values(pair.b), sites.values(pair.a), strict=True):
            missed += share * (site_b @ (site_a @ a.T))
        damped = gram + regularization * size * torch.eye(len(gram), dtype=gram.dtype)
        result[pair.b] = (b + torch.linalg.solve(damped, missed.T).T).float()
    return result
