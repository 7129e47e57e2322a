"""The round loop: sends rounds out, checks what comes back, lets Flower's strategy aggregate, keeps checkpoints.

Flower's own ``Strategy.start`` always counts from round 1, waits for ever for lost nodes and ends the run at one inconsistent reply; here
a run continues from any round, and replies are checked before the strategy sees them.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedsam_pipeline.evaluation.summary import SiteDice, combine_sites
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.coding import Encoded, decode
from fedsam_pipeline.federation.codec.downlink import Downlink
from fedsam_pipeline.federation.codec.wires import Wire
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.flower.messages import (
    CONFIG,
    DECODE_SECONDS,
    ENCODE_SECONDS,
    EVALUATE_FOLD,
    METRICS,
    NUM_EXAMPLES,
    PAYLOAD,
    REFERENCE_MISSING,
    TRAIN_ROUND,
    from_arrays,
    from_record,
    message_bytes,
    to_arrays,
    to_record,
)
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.training.local_trainer import RunSchedule

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1
ANSWERED_KEYS = ("run_id", "round", "attempt")
MAX_EXAMPLES = 10**9
REPLY_KEYS = ("loss", "learning_rate", "seconds", "data_seconds")


class SiteFailed(RuntimeError):
    """A site's reply is missing, is an error, or was refused, and the run needs that site.

    Attributes:
        code: of the failure, where the site reported one.
    """

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class RunStopped(RuntimeError):
    """Someone asked the run to stop."""


@dataclass(frozen=True)
class RoundPlan:
    """What the server knows of a run.

    Attributes:
        run_id: opaque id that both sides compare.
        schedule: rounds, steps, learning rate, seed.
        val_every: the received model is scored in every so many rounds; 0 never.
        agreement: hashes of plan, recipe and base weights.
        num_sites: sites that must answer each round.
        class_names: foreground names, in order.
        timeout: seconds to wait for the replies of one round; ``None`` waits for all.
        wire: how states and updates travel.
    """

    run_id: str
    schedule: RunSchedule
    val_every: int
    agreement: dict[str, str]
    num_sites: int
    class_names: tuple[str, ...]
    timeout: float | None = None
    wire: Wire = "fp32"


@dataclass
class SiteReply:
    """A checked reply."""

    site: str
    metrics: dict[str, float]
    validation: dict[str, SiteDice]
    num_bytes: int
    node: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    bytes_after: int = 0
    """of the update's payload"""
    decode_seconds: float = 0.0
    """that the server took for it"""


@dataclass(frozen=True)
class Sent:
    """What went to one node in one exchange."""

    bytes_after: int
    """of payloads"""
    bytes_message: int
    encode_seconds: float

    def __add__(self, other: "Sent") -> "Sent":
        return Sent(
            self.bytes_after + other.bytes_after, self.bytes_message + other.bytes_message, self.encode_seconds + other.encode_seconds
        )


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``progress.jsonl`` and one entry of ``communication.json``."""

    progress: dict[str, Any]
    communication: dict[str, Any]


class RoundLoop:
    """Runs rounds on a grid.

    Args:
        grid: Flower's connection to the sites.
        strategy: aggregates; its record keys are those of ``messages.py``.
        plan: of the run.
        manifest: what may travel.
        checkpoints: one is written after every round.
        downlink: what the sites hold; after ``evaluate`` it is the scored model, bit for bit.
        on_round: called with each finished round's record.
        stop: set by another thread to end the run while it waits for sites.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: FedAvg,
        plan: RoundPlan,
        manifest: Manifest,
        checkpoints: CheckpointSeries,
        downlink: Downlink,
        on_round: Callable[[RoundRecord], None],
        stop: threading.Event | None = None,
    ) -> None:
        self._grid, self._strategy, self._plan = grid, strategy, plan
        self._manifest, self._checkpoints, self._downlink, self._on_round = manifest, checkpoints, downlink, on_round
        self._stop = stop or threading.Event()

    def run(self, tensors: dict[str, Tensor], rounds_done: int) -> dict[str, Tensor]:
        """Runs all rounds after ``rounds_done``; returns the federated tensors after the last.

        Raises:
            SiteFailed: a site did not give a usable answer.
        """
        for round_number in range(rounds_done + 1, self._plan.schedule.rounds + 1):
            tensors, record = self._round(tensors, round_number)
            self._on_round(record)
            self._checkpoints.save(
                round_number, tensors | self._downlink.state()
            )  # last: a round without a checkpoint is done again, records and all
        return tensors

    def evaluate(self, tensors: dict[str, Tensor]) -> tuple[dict[str, SiteDice], dict[str, Any]]:
        """Scores the final model on every site's whole fold: Dice by site, and the bytes it took."""
        started = time.perf_counter()
        config = self._config(self._plan.schedule.rounds, validate=True)
        configs = dict.fromkeys(sorted(self._grid.get_node_ids()), config)
        replies, down = self._exchange(self._downlink.send(tensors), configs, EVALUATE_FOLD)
        traffic = self._traffic(self._plan.schedule.rounds, down, replies, EVALUATE_FOLD)
        scores = {site: dice for reply in replies for site, dice in reply.validation.items()}
        return scores, traffic | {"seconds": time.perf_counter() - started}

    def _round(self, tensors: dict[str, Tensor], round_number: int) -> tuple[dict[str, Tensor], RoundRecord]:
        started = time.perf_counter()
        plan = self._plan
        validate = plan.val_every > 0 and (round_number - 1) % plan.val_every == 0 and round_number > 1
        config = self._config(round_number, validate=validate)
        encoded = self._downlink.send(tensors)
        configured = self._strategy.configure_train(round_number, to_arrays(self._downlink.held), config, self._grid)
        configs = {message.metadata.dst_node_id: message.content.config_records[CONFIG] for message in configured}
        replies, down = self._exchange(encoded, configs, TRAIN_ROUND)
        aggregated = self._aggregate(round_number, replies)
        traffic = self._traffic(round_number, down, replies, TRAIN_ROUND)
        seconds = time.perf_counter() - started
        validation = {site: dice for reply in replies for site, dice in reply.validation.items()}
        progress: dict[str, Any] = {
            "event": "round",
            "round": round_number,
            "learning_rate": replies[0].metrics["learning_rate"],
            "sites": {reply.site: {key: reply.metrics[key] for key in (NUM_EXAMPLES, *REPLY_KEYS)} for reply in replies},
            "validated_round": round_number - 1 if validation else None,
            "validation": {site: dice.to_dict(plan.class_names) for site, dice in validation.items()},
            "dice": _finite(combine_sites(validation).dice) if validation else None,
            "bytes_up": sum(entry["up"]["bytes_message"] for entry in traffic["sites"].values()),
            "bytes_down": sum(entry["down"]["bytes_message"] for entry in traffic["sites"].values()),
            "seconds": seconds,
        }
        return aggregated, RoundRecord(progress, traffic)

    def _config(self, round_number: int, *, validate: bool) -> ConfigRecord:
        schedule = self._plan.schedule
        return ConfigRecord(
            {
                **self._plan.agreement,
                "run_id": self._plan.run_id,
                "round": round_number,
                "attempt": 1,
                "rounds": schedule.rounds,
                "local_steps": schedule.local_steps,
                "learning_rate": schedule.peak_learning_rate,
                "seed": schedule.seed,
                "validate": validate,
                "wire": self._plan.wire,
            }
        )

    def _exchange(self, encoded: Encoded, configs: dict[int, ConfigRecord], kind: str) -> tuple[list[SiteReply], dict[int, Sent]]:
        """Sends, waits, checks; replies come back sorted by site, with what went to every node.

        A node that does not hold the payload's reference (a joiner, or one whose disk was lost) says so and gets the full state at once.
        """
        arrived, down = self._deliver(encoded, configs, kind)
        lacking = {message.metadata.src_node_id for message in arrived if _lacks_reference(message)} & set(configs)
        if lacking:
            log.info("%d of %d sites get the full state", len(lacking), len(configs))
            again, more = self._deliver(self._downlink.full(), {node: configs[node] for node in sorted(lacking)}, kind)
            arrived = [message for message in arrived if message.metadata.src_node_id not in lacking] + again
            down |= {node: down[node] + sent for node, sent in more.items()}
        sent_config = next(iter(configs.values()))
        replies = [self._checked(message, sent_config, with_tensors=kind == TRAIN_ROUND) for message in arrived]
        missing = self._plan.num_sites - len(replies)
        if missing > 0:
            raise SiteFailed(f"{missing} of {self._plan.num_sites} sites did not answer")
        if len({reply.site for reply in replies}) != len(replies):
            raise SiteFailed("two nodes answer for the same site")
        return sorted(replies, key=lambda reply: reply.site), down

    def _deliver(self, encoded: Encoded, configs: dict[int, ConfigRecord], kind: str) -> tuple[list[Message], dict[int, Sent]]:
        record = to_record(encoded.payload)
        contents = {node: RecordDict({PAYLOAD: record, CONFIG: config}) for node, config in configs.items()}
        messages = [Message(content, dst_node_id=node, message_type=kind) for node, content in contents.items()]
        down = {
            node: Sent(encoded.figures.bytes_after, message_bytes(content), encoded.figures.seconds) for node, content in contents.items()
        }
        return self._send_and_receive(messages), down

    def _send_and_receive(self, messages: list[Message]) -> list[Message]:
        """Like the grid's own method, but ends at the timeout of the plan, and at once when the run is stopped."""
        waiting = set(self._grid.push_messages(messages))
        deadline = None if self._plan.timeout is None else time.monotonic() + self._plan.timeout
        received: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = list(self._grid.pull_messages(waiting))
            received += arrived
            waiting -= {message.metadata.reply_to_message_id for message in arrived}
            if waiting and self._stop.wait(POLL_SECONDS):
                raise RunStopped("the run was stopped while sites were computing")
        return received

    def _checked(self, message: Message, sent: ConfigRecord, *, with_tensors: bool) -> SiteReply:
        if message.has_error():
            raise SiteFailed(f"a site's process failed (Flower error {message.error.code}): {message.error.reason}")
        try:
            return self._parsed(message, sent, with_tensors)
        except (KeyError, TypeError, ValueError) as error:  # a record or key that is not there, an array that cannot be read
            raise SiteFailed(f"a reply cannot be read ({type(error).__name__})") from error

    def _parsed(self, message: Message, sent: ConfigRecord, with_tensors: bool) -> SiteReply:
        content = message.content
        config, metrics = content.config_records[CONFIG], content.metric_records[METRICS]
        site = str(config["site"])
        if "failure" in config:
            code = str(config["failure"])[:40]
            raise SiteFailed(f"{site} reports {code}, id {config['failure_id']!s:.16}: see sites/{site}/logs/site.log", code)
        if any(config[key] != sent[key] for key in ANSWERED_KEYS):
            raise SiteFailed(f"{site} answers for another run or round")
        node = message.metadata.src_node_id
        reply = SiteReply(site, _floats(site, metrics), self._validation(site, config), message_bytes(content), node)
        if with_tensors:
            needed = (*REPLY_KEYS, ENCODE_SECONDS)
            if reply.metrics[NUM_EXAMPLES] < 1 or not set(needed) <= set(reply.metrics):
                raise SiteFailed(f"{site} sends no examples, or lacks one of {', '.join(needed)}")
            started = time.perf_counter()
            try:
                payload = from_record(content.array_records[PAYLOAD])
                reply.tensors = decode(payload, self._downlink.held, self._manifest)
            except UpdateRefused as error:
                raise SiteFailed(f"the update of {site} was refused: {error}") from error
            reply.bytes_after, reply.decode_seconds = len(payload), time.perf_counter() - started
        return reply

    def _validation(self, site: str, config: ConfigRecord) -> dict[str, SiteDice]:
        try:
            values = json.loads(str(config["validation"]))
            scores = {str(owner): SiteDice.from_dict(value, self._plan.class_names) for owner, value in values.items()}
            if any(np.any((score.classes < 0) | (score.classes > 1)) or score.dice < 0 or score.dice > 1 for score in scores.values()):
                raise ValueError("a Dice outside 0 to 1")
            return scores
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SiteFailed(f"the scores of {site} cannot be read ({type(error).__name__})") from error

    def _aggregate(self, round_number: int, replies: Iterable[SiteReply]) -> dict[str, Tensor]:
        clean = [
            Message(
                RecordDict({PAYLOAD: to_arrays(reply.tensors), METRICS: MetricRecord({NUM_EXAMPLES: reply.metrics[NUM_EXAMPLES]})}),
                dst_node_id=0,
                message_type=TRAIN_ROUND,
            )
            for reply in replies
        ]
        arrays, _ = self._strategy.aggregate_train(round_number, clean)
        if arrays is None:
            raise SiteFailed("the strategy gave no aggregate")
        return {name: torch.from_numpy(np.asarray(array, dtype=np.float32).copy()) for name, array in from_arrays(arrays).items()}

    def _traffic(self, round_number: int, down: dict[int, Sent], replies: list[SiteReply], kind: str) -> dict[str, Any]:
        count = len(self._manifest.federated)
        before = 4 * self._manifest.federated_parameters
        return {
            "round": round_number,
            "message": kind,
            "wire": self._plan.wire,
            "sites": {
                reply.site: {
                    "down": {
                        "tensors": count,
                        "bytes_payload_before": before,
                        "bytes_payload_after": down[reply.node].bytes_after,
                        "bytes_message": down[reply.node].bytes_message,
                        "codec_seconds": down[reply.node].encode_seconds + reply.metrics.get(DECODE_SECONDS, 0.0),
                    },
                    "up": {
                        "tensors": len(reply.tensors),
                        "bytes_payload_before": before if reply.tensors else 0,
                        "bytes_payload_after": reply.bytes_after,
                        "bytes_message": reply.num_bytes,
                        "codec_seconds": reply.metrics.get(ENCODE_SECONDS, 0.0) + reply.decode_seconds,
                    },
                }
                for reply in replies
            },
        }


def fedavg(num_sites: int) -> FedAvg:
    """Flower's FedAvg (McMahan et al., AISTATS 2017) over all sites, with our record keys."""
    return FedAvg(
        fraction_train=1.0,
        fraction_evaluate=1.0,
        min_train_nodes=num_sites,
        min_evaluate_nodes=num_sites,
        min_available_nodes=num_sites,
        weighted_by_key=NUM_EXAMPLES,
        arrayrecord_key=PAYLOAD,
        configrecord_key=CONFIG,
    )


def _floats(site: str, metrics: MetricRecord) -> dict[str, float]:
    values = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    if not all(np.isfinite(value) for value in values.values()) or not 0 <= values.get(NUM_EXAMPLES, -1) <= MAX_EXAMPLES:
        raise SiteFailed(f"{site} sends numbers that cannot be: a metric is not finite, or {NUM_EXAMPLES} is not a count")
    return values


def _lacks_reference(message: Message) -> bool:
    if message.has_error() or CONFIG not in message.content.config_records:
        return False
    return message.content.config_records[CONFIG].get("failure") == REFERENCE_MISSING


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
