"""One round's updates become one adapter: by Flower's strategy, and in bounded memory where the strategy is a weighted mean."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedsam_pipeline.federation.lora_aggregation.pairs import factor_kind
from fedsam_pipeline.federation.lora_aggregation.rolora import frozen_in
from fedsam_pipeline.federation.strategy_settings import require_sites, strategy_settings, streams
from fedsam_pipeline.federation.streaming import WeightedMean
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.federation.weighting import site_weights
from fedsam_pipeline.flower.messages import CONFIG, METRICS, NUM_EXAMPLES, PAYLOAD, TRAIN_ROUND, from_arrays, to_arrays
from fedsam_pipeline.flower.private_rounds import PrivateRounds
from fedsam_pipeline.flower.strategies import SITE, LoraFedAvg, make_strategy
from fedsam_pipeline.flower.strategy_state import load_strategy_state, strategy_state
from fedsam_pipeline.model.lora_residuals import split_residuals
from fedsam_pipeline.specs.recipe import AggregationRecipe

_STRATEGY, _DICE = "strategy/", "dice/"
_MEAN = "all sites"


class Aggregator:
    """The strategy of one run, with what it carries from round to round.

    Where the strategy is linear, updates are summed as they arrive and dropped: memory for one sum, however many sites answer. The others
    (medians, Krum, products of factors) keep every update of the round.

    Args:
        recipe: strategy, LoRA method, weighting and settings.
        num_sites: of the run.
        privacy: clips updates and adds noise to their mean; of linear strategies and equal weights only.

    Raises:
        FedsamError: a combination without meaning, or too few sites for the strategy.
    """

    def __init__(self, recipe: AggregationRecipe, num_sites: int, privacy: PrivateRounds | None = None) -> None:
        self._recipe, self._privacy = recipe, privacy
        self._settings = strategy_settings(recipe.strategy, recipe.lora_method, recipe.options)
        self._strategy: FedAvg = make_strategy(recipe.strategy, num_sites, self._settings, recipe.lora_method)
        self._streams = streams(recipe.strategy, recipe.lora_method)
        self._dice: dict[str, float] = {}

    @property
    def residuals(self) -> dict[str, Tensor]:
        """What FedEx-LoRA has folded into the base weights so far; it goes down with the adapter. Empty for other methods."""
        return self._strategy.residuals if isinstance(self._strategy, LoraFedAvg) else {}

    @property
    def told(self) -> dict[str, float]:
        """What the sites are told with every message."""
        return {} if self._privacy is None else self._privacy.told()

    @property
    def spent(self) -> dict[str, Any] | None:
        """Of the privacy budget; ``None`` where there is none."""
        return None if self._privacy is None else self._privacy.spent

    def configure(self, round_number: int, tensors: Mapping[str, Tensor], config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The round's messages to the sites, and a new sum for their answers.

        Raises:
            FedsamError: its model would exceed the privacy budget.
        """
        if self._privacy is not None:
            self._privacy.require_budget()
        self._round, self._sent = round_number, dict(tensors)
        self._mean, self._weights, self._updates = WeightedMean(), dict[str, float](), dict[str, dict[str, Tensor]]()
        return self._strategy.configure_train(round_number, to_arrays(self._sent | self.residuals), config, grid)

    def add(self, site: str, tensors: dict[str, Tensor], num_cases: int) -> None:
        """Takes one site's checked update in.

        Raises:
            UpdateRefused: a factor that RoLoRA freezes in this round was changed.
        """
        if self._recipe.lora_method == "rolora":
            changed = [
                name for name in tensors if factor_kind(name) == frozen_in(self._round) and not torch.equal(tensors[name], self._sent[name])
            ]
            if changed:
                raise UpdateRefused(f"{changed[0]}: changed, though this round freezes it")
        weight = site_weights(self._recipe.weighting, dict.fromkeys(self._dice, 1) | {site: num_cases}, self._dice)[site]
        self._weights[site] = weight
        if self._privacy is not None:
            tensors = self._privacy.clip(tensors, self._sent)
        if self._streams:
            self._mean.add(tensors, weight)
        else:
            self._updates[site] = tensors

    def result(self) -> dict[str, Tensor]:
        """The new adapter, float32.

        Raises:
            FedsamError: too few updates for the strategy, or they do not fit each other.
        """
        require_sites(self._recipe.strategy, len(self._weights), self._settings)
        if self._streams:
            mean = (
                self._mean.result()
                if self._privacy is None
                else self._privacy.release(self._mean.result(torch.float64), self._sent, len(self._weights))
            )
            updates, weights = {_MEAN: mean}, {_MEAN: sum(self._weights.values())}
        else:
            updates, weights = self._updates, self._weights
        replies = [
            Message(
                RecordDict(
                    {
                        PAYLOAD: to_arrays(updates[site]),
                        CONFIG: ConfigRecord({SITE: site}),
                        METRICS: MetricRecord({NUM_EXAMPLES: float(weights[site])}),
                    }
                ),
                dst_node_id=0,
                message_type=TRAIN_ROUND,
            )
            for site in sorted(updates)
        ]
        self._updates = {}
        arrays, _ = self._strategy.aggregate_train(self._round, replies)
        assert arrays is not None  # require_sites saw at least one update
        aggregated = {name: torch.from_numpy(np.asarray(array, dtype=np.float32).copy()) for name, array in from_arrays(arrays).items()}
        return split_residuals(aggregated)[0]

    def keep(self) -> None:
        """Before the round's result is sent: what it spends of the privacy budget is on the disk then."""
        if self._privacy is not None:
            self._privacy.keep()

    def scored(self, dice: Mapping[str, float]) -> None:
        """Remembers how well the received model did at each site, for weighting by validation in the rounds to come."""
        self._dice |= {site: value for site, value in dice.items() if np.isfinite(value)}

    def state(self) -> dict[str, Tensor]:
        """What has to outlive a restart; goes into the round's checkpoint."""
        dice = {f"{_DICE}{site}": torch.tensor(value, dtype=torch.float64) for site, value in self._dice.items()}
        return {f"{_STRATEGY}{name}": tensor for name, tensor in strategy_state(self._strategy).items()} | dice

    def restore(self, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Takes the state out of a round's checkpoint and returns the rest, the adapter.

        Raises:
            FedsamError: the state is of another strategy.
        """
        state = {name.removeprefix(_STRATEGY): tensor for name, tensor in checkpoint.items() if name.startswith(_STRATEGY)}
        load_strategy_state(self._strategy, state)
        self._dice = {name.removeprefix(_DICE): tensor.item() for name, tensor in checkpoint.items() if name.startswith(_DICE)}
        return {name: tensor for name, tensor in checkpoint.items() if not name.startswith((_STRATEGY, _DICE))}
