"""Rounds of a strategy without a federation: what the server sent, and what sites answer."""

from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from fedsam_pipeline.federation.strategy_settings import strategy_settings
from fedsam_pipeline.flower.messages import CONFIG, METRICS, NUM_EXAMPLES, PAYLOAD, TRAIN_ROUND, from_arrays, to_arrays
from fedsam_pipeline.flower.strategies import SITE, make_strategy


class Nodes:
    """As much of a grid as a strategy needs to choose sites."""

    def __init__(self, count: int) -> None:
        self._count = count

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self._count + 1)


def a_strategy(name: str, sites: int, options: Mapping[str, float] | None = None, lora_method: str | None = None) -> FedAvg:
    """A strategy with these settings, the others by default."""
    return make_strategy(name, sites, strategy_settings(name, lora_method, options or {}), lora_method)


def sent(strategy: FedAvg, tensors: Mapping[str, Tensor], round_number: int, sites: int) -> list[Message]:
    """The messages of a round."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # Flower stamps messages with them
    return list(strategy.configure_train(round_number, to_arrays(dict(tensors)), ConfigRecord(), cast(Grid, Nodes(sites))))


def aggregated(
    strategy: FedAvg, updates: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float] | None, round_number: int
) -> dict[str, Tensor]:
    """What the strategy makes of the updates, as the round loop reads it. Every result must be float32."""
    replies = [
        Message(
            RecordDict(
                {
                    PAYLOAD: to_arrays(dict(updates[site])),
                    METRICS: MetricRecord({NUM_EXAMPLES: 1.0 if weights is None else weights[site]}),
                    CONFIG: ConfigRecord({SITE: site}),
                }
            ),
            dst_node_id=0,
            message_type=TRAIN_ROUND,
        )
        for site in sorted(updates)
    ]
    arrays, _ = strategy.aggregate_train(round_number, replies)
    assert arrays is not None
    found = from_arrays(arrays)
    assert all(array.dtype == np.float32 for array in found.values())
    return {name: torch.from_numpy(array) for name, array in found.items()}


def a_round(
    strategy: FedAvg,
    received: Mapping[str, Tensor],
    updates: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, float] | None = None,
    round_number: int = 1,
) -> dict[str, Tensor]:
    """One whole round."""
    sent(strategy, received, round_number, len(updates))
    return aggregated(strategy, updates, weights, round_number)
