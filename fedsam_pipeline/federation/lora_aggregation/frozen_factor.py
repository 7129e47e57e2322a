"""Averaging where one factor is frozen in this round: exact, because sum w_i B_i A = (sum w_i B_i) A."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.pairs import FactorKind, factor_kind
from fedsam_pipeline.federation.lora_aggregation.site_updates import SiteUpdates, Tensors


def mean_beside_frozen(updates: Mapping[str, Tensors], weights: Mapping[str, float], frozen: FactorKind, method: str) -> dict[str, Tensor]:
    """Weighted mean of everything but the frozen factors, which must be equal at all sites and are returned as they are.

    A frozen factor need not travel: then it is not in the result either.

    Args:
        updates: tensors by site.
        weights: by site.
        frozen: the factor that nobody trains in this round.
        method: named in errors.

    Raises:
        FedsamError: the updates do not fit each other, hold none of the trained factors, or a frozen factor differs between sites.
    """
    sites = SiteUpdates(updates, weights)
    kinds = {name: factor_kind(name) for name in sites.names}
    if not any(kind is not None and kind != frozen for kind in kinds.values()):
        raise FedsamError(
            f"{method} has nothing to average: the factors that it trains do not travel",
            found=f"{len(sites.names)} tensors",
            expected=f"names such as LAYER.lora_{'B' if frozen == 'A' else 'A'}_q",
            fix="federate the factors in the recipe, or use another LoRA method",
        )
    result = {}
    for name, kind in kinds.items():
        if kind != frozen:
            result[name] = sites.mean(name).float()
            continue
        first, *others = sites.values(name)
        for site, other in zip(sites.sites[1:], others, strict=True):
            if not torch.equal(first, other):
                raise FedsamError(
                    f"{method} freezes {frozen} in this round, but two sites send different values of it",
                    found=f"{name} of {sites.sites[0]} and {site}",
                    expected="the factor that the server sent, unchanged, from every site",
                    fix=f"leave {frozen} out of the trained parameters of this round at every site, and start all from the same seed",
                )
        result[name] = first.float()
    return result
