"""All LoRA aggregation methods by name."""

from collections.abc import Mapping
from typing import get_args

from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.fedex import fedex
from fedsam_pipeline.federation.lora_aggregation.fedrot import fedrot
from fedsam_pipeline.federation.lora_aggregation.ffa import ffa
from fedsam_pipeline.federation.lora_aggregation.flexlora import flexlora
from fedsam_pipeline.federation.lora_aggregation.lora_fair import lora_fair
from fedsam_pipeline.federation.lora_aggregation.naive import naive
from fedsam_pipeline.federation.lora_aggregation.rolora import rolora
from fedsam_pipeline.federation.lora_aggregation.site_updates import Tensors
from fedsam_pipeline.specs.recipe import LoraMethod

LORA_METHODS: tuple[str, ...] = get_args(LoraMethod)
LINEAR = frozenset({"naive", "ffa", "rolora"})
"""methods whose result is a weighted mean, so that updates may be summed as they arrive (``streaming.py``)"""
REBASING = frozenset({"flexlora", "fedrot"})
"""methods after which the factors are in new coordinates: sites reset the optimizer moments of the factors"""
EXACT_ONLY = REBASING | {"rolora"}
"""methods between whose rounds error feedback has no meaning"""


def aggregate_lora(
    method: str,
    updates: Mapping[str, Tensors],
    weights: Mapping[str, float],
    *,
    received: Tensors,
    round_number: int,
    options: Mapping[str, float],
) -> dict[str, Tensor]:
    """One round's updates as one set of tensors, float32.

    Args:
        method: one of ``LORA_METHODS``.
        updates: tensors by site.
        weights: by site, not negative.
        received: the tensors that the sites started this round from.
        round_number: from 1.
        options: ``regularization`` for ``lora_fair``, ``alignment`` for ``fedrot``.

    Raises:
        FedsamError: unknown method, or the updates do not fit it.
    """
    match method:
        case "naive":
            return naive(updates, weights)
        case "ffa":
            return ffa(updates, weights)
        case "rolora":
            return rolora(updates, weights, round_number)
        case "flexlora":
            return flexlora(updates, weights)
        case "fedex":
            return fedex(updates, weights)
        case "lora_fair":
            return lora_fair(updates, weights, options["regularization"])
        case "fedrot":
            return fedrot(updates, weights, received, round_number, options["alignment"])
    raise FedsamError(
        "unknown LoRA method", found=method, expected=f"one of {', '.join(LORA_METHODS)}", fix="change the recipe's aggregation"
    )
