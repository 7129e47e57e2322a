"""Answers of sites, read and checked before anything is done with them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.common.constant import ErrorCode

from fedsam_pipeline.dataset.raw_checks import is_safe_name
from fedsam_pipeline.evaluation.summary import SiteDice
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.files import parse_json
from fedsam_pipeline.flower.messages import (
    BUSY_SECONDS,
    CONFIG,
    ENCODE_SECONDS,
    METRICS,
    NUM_EXAMPLES,
    REFERENCE_MISSING,
    VALIDATION,
    VALIDATION_SECONDS,
    VALIDATION_SHARED,
    message_bytes,
)
from fedsam_pipeline.flower.told_sums import MAX_ANSWER
from fedsam_pipeline.logs import printable

ANSWERED_KEYS = ("run_id", "round", "attempt")
MAX_EXAMPLES = 10**9
ABSENT = {
    ErrorCode.MESSAGE_UNAVAILABLE: "no answer in time",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "no answer in time",
    ErrorCode.NODE_UNAVAILABLE: "it is not connected any more",
}
"""what Flower's errors mean where nothing went wrong but that a site is away"""
REPLY_KEYS = ("loss", "learning_rate", "seconds", "data_seconds", VALIDATION_SECONDS, BUSY_SECONDS)


class SiteFailed(RuntimeError):
    """A site's reply is missing, is an error, or was refused, and the run needs that site.

    Attributes:
        code: of the failure, where the site reported one.
        site: the name in that report.
    """

    def __init__(self, text: str, code: str = "", site: str | None = None) -> None:
        super().__init__(text)
        self.code, self.site = code, site


class SpeakersConfused(SiteFailed):
    """Two nodes speak for one site, and nobody registered them: whose word counts is not known."""


@dataclass
class SiteReply:
    """A checked reply."""

    site: str
    metrics: dict[str, float]
    validation: dict[str, SiteDice]
    validation_shared: dict[str, SiteDice]
    num_bytes: int
    node: int
    num_tensors: int = 0
    bytes_after: int = 0
    """of the update's payload"""
    decode_seconds: float = 0.0
    """that the server took for it"""
    refused: str | None = None
    """why the update was not taken"""

    @property
    def own_seconds(self) -> float:
        """That the site trained and scored, as it says."""
        return self.metrics.get("seconds", 0.0) + self.metrics.get(VALIDATION_SECONDS, 0.0)

    @property
    def busy_seconds(self) -> float:
        """That the message took it, as it says, its own work at the least."""
        return max(self.own_seconds, self.metrics.get(BUSY_SECONDS, 0.0))


def read_reply(message: Message, sent: ConfigRecord, class_names: Sequence[str]) -> SiteReply:
    """What a site answered; its tensors and the numbers that come with them are not looked at.

    Args:
        message: the answer.
        sent: the config record it answers.
        class_names: names of what is scored, in order.

    Raises:
        SiteFailed: the site reports a failure, answers something else, or the answer cannot be read.
    """
    if message.has_error():
        code, reason = message.error.code, message.error.reason
        said = ABSENT.get(code, f"its process failed: {printable(reason, 80)}")
        raise SiteFailed(f"{said} (Flower error {code})")
    try:
        return _parsed(message, sent, class_names)
    except (KeyError, TypeError, ValueError) as error:  # a record or key that is not there, or a value of another type
        raise SiteFailed(f"a reply cannot be read ({type(error).__name__})") from error


def _parsed(message: Message, sent: ConfigRecord, class_names: Sequence[str]) -> SiteReply:
    content = message.content
    config, metrics = content.config_records[CONFIG], content.metric_records[METRICS]
    site = config["site"]
    if not isinstance(site, str) or not is_safe_name(site):
        raise ValueError("no name of a site")
    if "failure" in config:
        code = printable(config["failure"], 40)
        raise SiteFailed(f"{site} reports {code}, id {printable(config['failure_id'], 16)}: see sites/{site}/logs/site.log", code, site)
    if any(config[key] != sent[key] for key in ANSWERED_KEYS):
        raise SiteFailed(f"{site} answers for another run or round")
    shared = _validation(site, config, VALIDATION_SHARED, class_names) if VALIDATION_SHARED in config else {}
    own = _validation(site, config, VALIDATION, class_names)
    return SiteReply(site, _floats(metrics), own, shared, message_bytes(content), message.metadata.src_node_id)


def _validation(site: str, config: ConfigRecord, key: str, class_names: Sequence[str]) -> dict[str, SiteDice]:
    text = config[key]
    if not isinstance(text, str) or len(text) > MAX_ANSWER:
        raise SiteFailed(f"{site} sends no scores, or too many")
    try:
        values = parse_json(text)
        scores = {str(owner): SiteDice.from_dict(value, class_names) for owner, value in values.items()}
        if not all(map(_possible, scores.values())):
            raise ValueError("a Dice outside 0 to 1, or a number of cases that cannot be")
        return scores
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise SiteFailed(f"the scores of {site} cannot be read ({type(error).__name__})") from error


def _possible(score: SiteDice) -> bool:
    dice = np.append(score.classes, score.dice)
    counts = [score.absent] if score.excluded is None else [score.absent, score.excluded]
    in_range = all(((count >= 0) & (count <= score.num_cases)).all() for count in counts)
    return in_range and 0 <= score.num_cases <= MAX_EXAMPLES and not np.any((dice < 0) | (dice > 1))


def lacks_reference(message: Message) -> bool:
    """Whether a site answers that it does not hold the state that the payload comes against."""
    if message.has_error() or CONFIG not in message.content.config_records:
        return False
    return message.content.config_records[CONFIG].get("failure") == REFERENCE_MISSING


def check_update_numbers(reply: SiteReply) -> None:
    """The numbers that come with an update.

    Raises:
        UpdateRefused: one is missing or cannot be.
    """
    needed = (*REPLY_KEYS, ENCODE_SECONDS)
    if missing := sorted(set(needed) - reply.metrics.keys()):
        raise UpdateRefused(f"it comes without {', '.join(missing)}, or with what is not finite")
    if not 1 <= reply.metrics.get(NUM_EXAMPLES, 0) <= MAX_EXAMPLES:
        raise UpdateRefused(f"{NUM_EXAMPLES} is not a count")


def _floats(metrics: MetricRecord) -> dict[str, float]:
    """Numbers that cannot be are left out, so that no record of the run holds any; an update that lacks them is refused."""
    values = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: value for name, value in values.items() if np.isfinite(value)}
