"""Flower's strategies with our record keys and float32 results, and the LoRA methods as a strategy.

Three things are set right on the way:

- FedAdam and FedYogi give float64, because a NumPy scalar widens the arrays: every result is cast to float32.
- Krum and Bulyan take distances in float32 as |x|^2 + |y|^2 - 2 x.y, which loses the small differences between sites that started from one
  model. Distances do not change when the same tensors are taken off all sites: they are given the float64 differences to what was sent.
- FedAvgM remembers the last aggregate by itself: here it is told anew each round what the sites received, so that a round that is done
  again, or a run that continues, counts from the right model.

A strategy sees one array record and one metric record a site, sorted by site; ``num_examples`` is the site's weight.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Bulyan, FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, FedTrimmedAvg, FedYogi, Krum
from torch import Tensor

from fedsam_pipeline.federation.lora_aggregation.fedex import add_residuals
from fedsam_pipeline.federation.lora_aggregation.methods import aggregate_lora
from fedsam_pipeline.federation.strategy_settings import require_sites
from fedsam_pipeline.flower.messages import CONFIG, NUM_EXAMPLES, PAYLOAD, from_arrays, to_arrays
from fedsam_pipeline.model.lora_residuals import split_residuals

Aggregate = tuple[ArrayRecord | None, MetricRecord | None]
SITE = "site"
"""key of the reply's config; the LoRA methods name sites in their errors"""


class _Float32(FedAvg):
    """Casts what the strategy beside it gives."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Aggregate:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None:
            arrays = ArrayRecord({name: Array(np.asarray(array, np.float32)) for name, array in from_arrays(arrays).items()})
        return arrays, metrics


class _Centred(_Float32):
    """Gives the strategy beside it the differences to what the sites received, float64."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        self._received = {name: array.astype(np.float64) for name, array in from_arrays(arrays).items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Aggregate:
        replies = list(replies)
        for reply in replies:
            if reply.has_content():
                sent = from_arrays(reply.content.array_records[PAYLOAD])
                moved = {name: array.astype(np.float64) - self._received[name] for name, array in sent.items()}
                reply.content[PAYLOAD] = ArrayRecord({name: Array(array) for name, array in moved.items()})
        arrays, metrics = super(_Float32, self).aggregate_train(server_round, replies)
        if arrays is not None:
            moved = {name: self._received[name] + array.astype(np.float64) for name, array in from_arrays(arrays).items()}
            arrays = ArrayRecord({name: Array(array.astype(np.float32)) for name, array in moved.items()})
        return arrays, metrics


class PlainFedAvg(_Float32):
    """McMahan et al., AISTATS 2017, arXiv:1602.05629."""


class ServerFedProx(_Float32, FedProx):
    """Li et al., MLSys 2020, arXiv:1812.06127. The term itself is added at the site (``training/proximal.py``)."""


class ServerMomentum(_Float32, FedAvgM):
    """Hsu et al., 2019, arXiv:1909.06335."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)


class ServerAdam(_Float32, FedAdam):
    """Reddi et al., ICLR 2021, arXiv:2003.00295."""


class ServerYogi(_Float32, FedYogi):
    """Reddi et al., ICLR 2021, arXiv:2003.00295."""


class Median(_Float32, FedMedian):
    """Yin et al., ICML 2018, arXiv:1803.01498."""


class TrimmedMean(_Float32, FedTrimmedAvg):
    """Yin et al., ICML 2018, arXiv:1803.01498."""


class CentredKrum(_Centred, Krum):
    """Blanchard et al., NeurIPS 2017, arXiv:1703.02757."""


class CentredBulyan(_Centred, Bulyan):
    """El Mhamdi et al., ICML 2018, arXiv:1802.07927."""


class LoraFedAvg(FedAvg):
    """One LoRA method in the place of the mean; the site's name comes in the reply's config record.

    Args:
        lora_method: one of ``LORA_METHODS``.
        settings: of the method.
        flower: arguments of Flower's strategy.

    Attributes:
        residuals: what FedEx-LoRA folded into the base weights in all rounds so far; empty for other methods.
    """

    def __init__(self, lora_method: str, settings: Mapping[str, float], **flower: Any) -> None:
        super().__init__(**flower)
        self.lora_method, self._settings = lora_method, settings
        self.residuals: dict[str, Tensor] = {}
        self._received: dict[str, Tensor] = {}

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        self._received, _ = split_residuals(_tensors(arrays))
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Aggregate:
        """The received tensors with what was aggregated in their place: frozen factors need not come back from the sites."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        contents = [message.content for message in valid]
        names = [str(content.config_records[CONFIG][SITE]) for content in contents]
        updates = {site: _tensors(content.array_records[PAYLOAD]) for site, content in zip(names, contents, strict=True)}
        weights = {
            site: float(next(iter(content.metric_records.values()))[NUM_EXAMPLES])  # type: ignore[arg-type]
            for site, content in zip(names, contents, strict=True)
        }
        aggregated = aggregate_lora(
            self.lora_method, updates, weights, received=self._received, round_number=server_round, options=self._settings
        )
        self.residuals = add_residuals(self.residuals, split_residuals(aggregated)[1])
        return to_arrays(self._received | aggregated), self.train_metrics_aggr_fn(contents, self.weighted_by_key)


class LoraFedProx(LoraFedAvg, FedProx):
    """A LoRA method, with the proximal term at the sites."""


def make_strategy(name: str, num_sites: int, settings: Mapping[str, float], lora_method: str | None = None) -> FedAvg:
    """A strategy over all sites.

    Args:
        name: one of ``strategy_settings.STRATEGIES``.
        num_sites: sites of the run; all take part in every round.
        settings: what ``strategy_settings`` gave for these names.
        lora_method: one of ``LORA_METHODS``; ``None`` lets Flower treat LoRA factors as any other tensor.

    Raises:
        FedsamError: too few sites for the strategy.
    """
    require_sites(name, num_sites, settings)
    common: dict[str, Any] = {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": num_sites,
        "min_evaluate_nodes": num_sites,
        "min_available_nodes": num_sites,
        "weighted_by_key": NUM_EXAMPLES,
        "arrayrecord_key": PAYLOAD,
        "configrecord_key": CONFIG,
    }
    if lora_method is not None:
        if name == "fedprox":
            return LoraFedProx(lora_method, settings, **common, proximal_mu=settings["proximal_mu"])
        return LoraFedAvg(lora_method, settings, **common)
    if "num_malicious_nodes" in settings:
        return _CLASSES[name](**common, num_malicious_nodes=int(settings["num_malicious_nodes"]))
    return _CLASSES[name](**common, **settings)


_CLASSES: dict[str, Callable[..., FedAvg]] = {
    "fedavg": PlainFedAvg,
    "fedprox": ServerFedProx,
    "fedavgm": ServerMomentum,
    "fedadam": ServerAdam,
    "fedyogi": ServerYogi,
    "fedmedian": Median,
    "fedtrimmedavg": TrimmedMean,
    "krum": CentredKrum,
    "bulyan": CentredBulyan,
}


def _tensors(record: ArrayRecord) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in from_arrays(record).items()}
