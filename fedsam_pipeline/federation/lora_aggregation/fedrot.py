"""FedRot-LoRA: every site's factors are turned towards the factors that the server sent, then averaged.

Zhang et al., "FedRot-LoRA: mitigating rotational misalignment in federated LoRA", ICML 2026, arXiv:2602.23638. For any rotation R,
(B R)(R^T A) = B A: sites may learn the same change in different coordinates, and averaging those cancels. R solves the orthogonal
Procrustes problem (Schönemann, Psychometrika 1966) without reflections: odd rounds align A, even rounds B, as in the paper, and only part
of the way.

The paper turns at the sites. Turning needs only the update and what the server sent, so here the server does it: same result, same traffic.
Not exact. The factors are in new coordinates afterwards: optimizer moments of the factors at the sites must be reset.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.site_updates import SiteUpdates, Tensors

TIE = 1e-9
"""of the matrix's norm, added on the diagonal: where a rotation is not determined, the one nearest to none is taken"""


def fedrot(
    updates: Mapping[str, Tensors], weights: Mapping[str, float], received: Tensors, round_number: int, alignment: float
) -> dict[str, Tensor]:
    """Weighted mean of the aligned factors, and of all other tensors, float32.

    Args:
        updates: tensors by site.
        weights: by site.
        received: the tensors that the sites started this round from.
        round_number: from 1.
        alignment: lambda of the paper, 0 to 1: 0 averages the factors as they are, 1 turns all the way.

    Raises:
        FedsamError: the updates do not fit each other or what the server sent, or hold no LoRA pair.
    """
    sites = SiteUpdates(updates, weights)
    result = sites.means()
    for pair in sites.pairs():
        up, down = sites.values(pair.b), sites.values(pair.a)
        name, shape = (pair.a, down[0].shape) if round_number % 2 == 1 else (pair.b, up[0].shape)
        if name not in received or received[name].shape != shape:
            raise FedsamError(
                "fedrot aligns to what the server sent, which does not fit the updates",
                found=f"{name}: {tuple(received[name].shape) if name in received else 'not sent'}",
                expected=f"a tensor of shape {tuple(shape)}",
                fix="train every site with the same recipe and plan",
            )
        reference = received[name].to(torch.float64)
        mean_a, mean_b = torch.zeros_like(down[0]), torch.zeros_like(up[0])
        for share, b, a in zip(sites.shares, up, down, strict=True):
            correlation = a @ reference.T if round_number % 2 == 1 else b.T @ reference
            turn = _partly(nearest_rotation(correlation), alignment)
            mean_b += share * (b @ turn)
            mean_a += share * (turn.T @ a)
        result[pair.b], result[pair.a] = mean_b.float(), mean_a.float()
    return result


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation R (determinant 1) that maximizes trace(R^T M), for a square M (r, r) float64."""
    size = matrix.norm()
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    u, _, v = torch.linalg.svd(matrix + TIE * (size if size > 0 else 1.0) * identity)
    u[:, -1] *= torch.sign(torch.linalg.det(u @ v))  # a reflection is undone where it costs least
    rotation: Tensor = u @ v
    return rotation


def _partly(rotation: Tensor, alignment: float) -> Tensor:
    """A rotation between none and ``rotation``: the nearest to their straight mixture."""
    return nearest_rotation(torch.lerp(torch.eye(len(rotation), dtype=rotation.dtype), rotation, alignment))
