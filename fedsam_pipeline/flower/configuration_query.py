"""Asks sites how good configurations are on their own cases: ``query.configurations``. Sums over cases come back, and no case."""

import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsam_pipeline.evaluation.dice_sums import DiceSums
from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.flower.audit import trail_fault
from fedsam_pipeline.flower.client_app import AgreementBroken, SiteProcess, answer_safely
from fedsam_pipeline.flower.exchange import answers, wait_for_nodes
from fedsam_pipeline.flower.messages import CONFIG, METRICS, NUM_EXAMPLES, QUERY_CONFIGURATIONS, SUMS
from fedsam_pipeline.flower.told_sums import AnswerRefused, answering_site, told_sums

log = logging.getLogger(__name__)
CONFIGURATIONS, QUERY_ID = "configurations", "query_id"


class ConfigurationTask(SiteProcess, Protocol):
    """What a site knows before it is asked."""

    @property
    def configurations(self) -> Sequence[str]:
        """Names of what it can score, in order."""
        ...

    def scored(self) -> DiceSums:
        """The sums over its cases that may leave it."""
        ...


@dataclass(frozen=True)
class Question:
    """What the server knows.

    Attributes:
        configurations: names, in order.
        class_names: of what is scored.
        most_cases: of every site, the cases that it can have.
    """

    configurations: tuple[str, ...]
    class_names: tuple[str, ...]
    most_cases: Mapping[str, int]


def make_query_app(find_task: Callable[[Context, RecordDict], ConfigurationTask]) -> ClientApp:
    """A ClientApp that answers this question alone."""
    app = ClientApp()

    @app.query("configurations")
    def query(message: Message, context: Context) -> Message:
        return answer_safely(message, context, find_task, _answer)

    return app


def _answer(content: RecordDict, task: ConfigurationTask) -> RecordDict:
    config = content.config_records[CONFIG]
    if config[CONFIGURATIONS] != json.dumps(list(task.configurations)):
        raise AgreementBroken("the message asks for other configurations than this site has")
    told = {"site": task.site, QUERY_ID: config[QUERY_ID], SUMS: json.dumps(task.scored().to_dict(), allow_nan=False)}
    return RecordDict({CONFIG: ConfigRecord(told), METRICS: MetricRecord({NUM_EXAMPLES: 0})})


def ask_sites(grid: Grid, question: Question, heads: AuditHeads, stop: threading.Event) -> tuple[dict[str, DiceSums], dict[str, str]]:
    """Asks every site once.

    Args:
        grid: Flower's connection to the sites.
        question: what is asked.
        heads: of the sites' audit trails; an answer that contradicts them is refused.
        stop: set by another thread to end the waiting.

    Returns:
        Site to its sums, sorted, without any class where the site has too few cases to tell; and site (or node) to the reason why its
        answer was refused.

    Raises:
        RunStopped: someone asked to stop.
    """
    asked = ConfigRecord({CONFIGURATIONS: json.dumps(list(question.configurations)), QUERY_ID: secrets.token_hex(8)})
    nodes = wait_for_nodes(grid, len(question.most_cases), stop)
    messages = [Message(RecordDict({CONFIG: asked}), dst_node_id=node, message_type=QUERY_CONFIGURATIONS) for node in nodes]
    found: dict[str, DiceSums] = {}
    refused: dict[str, str] = {}
    for node, message in answers(grid, messages, None, stop):
        site = f"node {node}"
        try:
            site = answering_site(message, question.most_cases, found, heads.claim)
            fault = trail_fault(heads, message, site)
            sums = _read(message, site, asked, question)
            if fault is not None:
                raise AnswerRefused(fault)
            found[site] = sums
        except AnswerRefused as error:
            log.warning("the answer of %s was refused: %s", site, error)
            refused[site] = str(error)
    heads.keep()
    return {site: found[site] for site in sorted(found)}, refused


def _read(message: Message, site: str, asked: ConfigRecord, question: Question) -> DiceSums:
    value = told_sums(message, site, asked, (QUERY_ID,), "question")
    try:
        return DiceSums.from_answer(
            value, configurations=question.configurations, names=question.class_names, most_cases=question.most_cases[site]
        )
    except ValueError as error:
        raise AnswerRefused(str(error)) from error
