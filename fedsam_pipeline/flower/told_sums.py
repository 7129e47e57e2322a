"""What a site tells in answer to a query: who it is, and sums as JSON, checked before anything is done with them."""

from collections.abc import Callable, Container, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message

from fedsam_pipeline.files import parse_json
from fedsam_pipeline.flower.messages import CONFIG, SUMS
from fedsam_pipeline.logs import printable

MAX_ANSWER = 1 << 20
"""characters of an answer"""


class AnswerRefused(ValueError):
    """An answer that cannot be taken."""


def answering_site(message: Message, known: Container[str], answered: Container[str], claim: Callable[[str, int], bool]) -> str:
    """Who answers.

    Args:
        message: the answer.
        known: names of the sites.
        answered: those that have answered already.
        claim: of a name and a node, whether this node may speak for this site.

    Raises:
        AnswerRefused: the process failed, the site is not known, another node speaks for it, or it has answered.
    """
    if message.has_error():
        raise AnswerRefused(f"its process failed (Flower error {message.error.code})")
    site = str(message.content.config_records.get(CONFIG, ConfigRecord()).get("site"))
    if site not in known:
        raise AnswerRefused(f"there is no site {site!r:.40}")
    if not claim(site, message.metadata.src_node_id) or site in answered:
        raise AnswerRefused(f"two nodes answer for {site}")
    return site


def told_sums(message: Message, site: str, asked: ConfigRecord, same: Sequence[str], question: str) -> Any:
    """The parsed JSON of its sums; what they hold is not looked at.

    Args:
        message: the answer.
        site: whose it is.
        asked: the config record it answers.
        same: keys of ``asked`` that an answer repeats.
        question: what these keys tell apart, for the error: ``question``.

    Raises:
        AnswerRefused: the site reports a failure, answers something else, or tells no readable sums.
    """
    config = message.content.config_records[CONFIG]
    if "failure" in config:
        raise AnswerRefused(
            f"it reports {printable(config['failure'], 40)}, id {printable(config.get('failure_id'), 16)}: see sites/{site}/logs/site.log"
        )
    if any(config.get(key) != asked[key] for key in same):
        raise AnswerRefused(f"it is for another {question}")
    text = config.get(SUMS)
    if not isinstance(text, str) or len(text) > MAX_ANSWER:
        raise AnswerRefused(f"it comes without {SUMS}, or with too many")
    try:
        return parse_json(text)
    except ValueError as error:
        raise AnswerRefused(f"it cannot be read ({type(error).__name__})") from error
