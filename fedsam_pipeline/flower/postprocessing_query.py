"""The server's side of choosing postprocessing: asks all sites, checks what they say, adds it up."""

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.flower.audit import trail_fault
from fedsam_pipeline.flower.exchange import answers
from fedsam_pipeline.flower.messages import CANDIDATES, CONFIG, DECIDED, QUERY_POSTPROCESSING, message_bytes
from fedsam_pipeline.flower.replies import ANSWERED_KEYS
from fedsam_pipeline.flower.rounds import RoundPlan
from fedsam_pipeline.flower.told_sums import AnswerRefused, answering_site, told_sums
from fedsam_pipeline.postprocessing.deltas import DeltaSums, add_sums
from fedsam_pipeline.specs.postprocessing import MaskRule

log = logging.getLogger(__name__)


class PostprocessingQuery:
    """Asks the sites of a run.

    A site whose answer is missing or refused is left out of this question and not asked again; the choice goes on without it.

    Args:
        grid: Flower's connection to the sites.
        plan: of the run.
        most_cases: of every site, the cases that it can have.
        heads: of the sites' audit trails; an answer that contradicts them is refused.
        stop: set by another thread to end the run while it waits for sites.

    Attributes:
        traffic: an entry of ``communication.json`` for each question.
        refused: site (or node) to the reason.
        told: the sites that told sums, so far.
    """

    def __init__(self, grid: Grid, plan: RoundPlan, most_cases: Mapping[str, int], heads: AuditHeads, stop: threading.Event) -> None:
        self._grid, self._plan, self._most_cases, self._heads, self._stop = grid, plan, most_cases, heads, stop
        self._nodes = sorted(grid.get_node_ids())
        self.traffic: list[dict[str, Any]] = []
        self.refused: dict[str, str] = {}
        self.told: set[str] = set()

    def ask(self, decided: Sequence[MaskRule], candidates: Sequence[MaskRule]) -> DeltaSums:
        """The sums of all sites, added in sorted order of their names.

        Raises:
            RunStopped: someone asked the run to stop.
        """
        started = time.perf_counter()
        config = ConfigRecord(
            {
                **self._plan.agreement,
                "run_id": self._plan.run_id,
                "round": self._plan.schedule.rounds,
                "attempt": 1,
                DECIDED: json.dumps([rule.to_dict() for rule in decided]),
                CANDIDATES: json.dumps([rule.to_dict() for rule in candidates]),
            }
        )
        content = RecordDict({CONFIG: config})
        messages = [Message(content, dst_node_id=node, message_type=QUERY_POSTPROCESSING) for node in self._nodes]
        bytes_down = message_bytes(content)
        found: dict[str, DeltaSums] = {}
        sites: dict[str, dict[str, Any]] = {}
        silent = set(self._nodes)
        for node, message in answers(self._grid, messages, self._plan.timeout, self._stop, window=self._plan.window):
            silent.discard(node)
            site = f"node {node}"
            try:
                site = answering_site(message, self._most_cases, {*found, *self.refused}, self._heads.claim)
                sites[site] = {"down": _traffic(bytes_down), "up": _traffic(message_bytes(message.content))}
                fault = trail_fault(self._heads, message, site)
                sums = self._read(message, config, site, len(candidates))
                if fault is not None:
                    raise AnswerRefused(fault)
                found[site] = sums
            except AnswerRefused as error:
                self._leave_out(node, site, str(error))
        self._heads.keep()
        for node in sorted(silent):
            self._leave_out(node, f"node {node}", "it did not answer")
        self.told |= {site for site, sums in found.items() if sums.cases}
        self.traffic.append(
            {
                "round": self._plan.schedule.rounds,
                "message": QUERY_POSTPROCESSING,
                "wire": self._plan.wire,
                "sites": dict(sorted(sites.items())),
                "seconds": time.perf_counter() - started,
            }
        )
        return add_sums([found[site] for site in sorted(found)], len(candidates))

    def _leave_out(self, node: int, site: str, reason: str) -> None:
        log.warning("postprocessing: the answer of %s was refused, the choice goes on without it: %s", site, reason)
        self.refused[site] = reason
        self._nodes.remove(node)

    def _read(self, message: Message, sent: ConfigRecord, site: str, candidates: int) -> DeltaSums:
        """What it says."""
        value = told_sums(message, site, sent, ANSWERED_KEYS, "run or round")
        try:
            return DeltaSums.from_answer(value, names=self._plan.class_names, candidates=candidates, most_cases=self._most_cases[site])
        except ValueError as error:
            raise AnswerRefused(str(error)) from error


def _traffic(num_bytes: int) -> dict[str, Any]:
    """One way of one site: no tensor travels."""
    return {"tensors": 0, "bytes_payload_before": 0, "bytes_payload_after": 0, "bytes_message": num_bytes, "codec_seconds": 0.0}
