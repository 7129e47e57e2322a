"""Encrypted sums at the server: it adds what it cannot read, and asks a site of the round for what the sum decrypts to."""

import logging
import threading
import time
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.federation.codec.payload import expected_tensors
from fedsam_pipeline.federation.encrypted_sums import EncryptedSum, require_library, tensors_of
from fedsam_pipeline.federation.updates import UpdateRefused, checked_tensors
from fedsam_pipeline.federation.weighting import site_weights
from fedsam_pipeline.flower.aggregator import Aggregator
from fedsam_pipeline.flower.audit import trail_fault
from fedsam_pipeline.flower.exchange import answers
from fedsam_pipeline.flower.messages import (
    CONFIG,
    DECRYPT_SECONDS,
    DECRYPTED,
    ENCRYPTED,
    ENCRYPTED_SITES,
    NUM_EXAMPLES,
    PARTS,
    QUERY_DECRYPTED_SUM,
    from_arrays,
    from_record,
    message_bytes,
    to_record,
)
from fedsam_pipeline.flower.replies import SiteFailed, SiteReply, read_reply
from fedsam_pipeline.flower.rounds import RoundPlan
from fedsam_pipeline.flower.site_encryption import LEAST_PARTS
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.specs.recipe import Weighting

log = logging.getLogger(__name__)
ALL_SITES = "all sites"


class EncryptedRound:
    """The sum of one round.

    Args:
        grid: Flower's connection to the sites.
        plan: of the run.
        weighting: how the sites weight their updates.
        manifest: what may travel.
        heads: of the sites' audit trails; an answer that contradicts them is refused.
        stop: set by another thread to end the run while it waits for sites.

    Raises:
        FedsamError: TenSEAL is not installed.
    """

    def __init__(
        self, grid: Grid, plan: RoundPlan, weighting: Weighting, manifest: Manifest, heads: AuditHeads, stop: threading.Event
    ) -> None:
        require_library()
        self._grid, self._plan, self._weighting, self._manifest = grid, plan, weighting, manifest
        self._heads, self._stop = heads, stop
        self._sum = EncryptedSum(manifest.federated_parameters)
        self._weights: list[float] = []
        self._cases = 0
        self._replies: list[SiteReply] = []
        self._add_seconds = 0.0
        self._decryption: dict[str, Any] = {}

    def take(self, reply: SiteReply, content: RecordDict) -> None:
        """Adds one site's update.

        Raises:
            UpdateRefused: it is not encrypted, or is no part of this sum.
        """
        if ENCRYPTED not in content.array_records:
            raise UpdateRefused(f"it comes without {ENCRYPTED}")
        started = time.perf_counter()
        payload = from_record(content.array_records[ENCRYPTED])
        reply.bytes_after = len(payload)
        self._sum.add(payload)
        cases = int(reply.metrics[NUM_EXAMPLES])
        self._weights.append(site_weights(self._weighting, {reply.site: cases})[reply.site])
        self._cases += cases
        reply.decode_seconds = time.perf_counter() - started
        self._add_seconds += reply.decode_seconds
        reply.num_tensors = len(self._manifest.federated)
        self._replies.append(reply)

    def finish(self, round_number: int, held: dict[str, Tensor], aggregator: Aggregator) -> None:
        """Has the sum decrypted, and gives the state that its weighted mean leads to to the aggregator, as one update.

        Args:
            round_number: from 1; says which site is asked first.
            held: what the sites started the round from.
            aggregator: of the run.

        Raises:
            SiteFailed: there are fewer than two updates, no site gave a usable answer, or what came out is farther away than the mean of
                honest updates can be, or refused by the aggregator.
            RunStopped: someone asked the run to stop.
        """
        total, weight = self._opened(round_number), sum(self._weights)
        moved = {name: (held[name].double() + total[name].double() / weight).float() for name in sorted(total)}
        try:
            self._plan.bound(round_number).check(moved, held)
            aggregator.add(ALL_SITES, moved, self._cases)
        except UpdateRefused as error:
            raise SiteFailed(f"the sum of {self._sum.parts} updates was refused: {error}") from error

    def note(self, traffic: dict[str, Any]) -> None:
        """Adds what decrypting took to the round's entry of ``communication.json``: its messages to those of the site that was asked."""
        traffic["encryption"] = self._decryption
        site = traffic["sites"][self._decryption["site"]]
        for way in ("down", "up"):
            site[way]["bytes_message"] += self._decryption[f"bytes_message_{way}"]

    def _opened(self, round_number: int) -> dict[str, Tensor]:
        if self._sum.parts < LEAST_PARTS:
            raise SiteFailed(f"{self._sum.parts} usable update(s): an encrypted sum needs {LEAST_PARTS}, or it is one site's own")
        payload = self._sum.payload()
        replies = sorted(self._replies, key=lambda reply: reply.site)
        first = round_number % len(replies)
        faults, codes = [], set()
        for reply in (*replies[first:], *replies[:first]):
            try:
                return self._asked(round_number, reply, payload)
            except (SiteFailed, UpdateRefused) as error:
                log.warning("%s did not decrypt the sum: %s", reply.site, error)
                faults.append(f"{reply.site}: {error}")
                codes.add(error.code if isinstance(error, SiteFailed) else "")
        raise SiteFailed(f"no site decrypted the sum; {'; '.join(faults)}", codes.pop() if len(codes) == 1 else "")

    def _asked(self, round_number: int, by: SiteReply, payload: bytes) -> dict[str, Tensor]:
        """One site's answer, checked as an update is."""
        started = time.perf_counter()
        config = ConfigRecord(
            {**self._plan.agreement, "run_id": self._plan.run_id, "round": round_number, "attempt": 1, PARTS: self._sum.parts}
        )
        content = RecordDict({ENCRYPTED: to_record(payload), CONFIG: config})
        asked = Message(content, dst_node_id=by.node, message_type=QUERY_DECRYPTED_SUM, ttl=self._plan.timeout)
        for _, message in answers(self._grid, [asked], self._plan.timeout, self._stop):
            answer = read_reply(message, config, self._plan.class_names)
            if answer.site != by.site or answer.node != by.node:
                raise SiteFailed(f"another answers for it: {answer.site}")
            fault = trail_fault(self._heads, message, by.site)
            if fault is not None:
                raise UpdateRefused(fault)
            self._heads.keep()
            total = self._read(message.content)
            self._decryption = {
                "site": by.site,
                "parts": self._sum.parts,
                "bytes_sum": len(payload),
                "bytes_message_down": message_bytes(content),
                "bytes_message_up": answer.num_bytes,
                "add_seconds": self._add_seconds,
                "decrypt_seconds": answer.metrics.get(DECRYPT_SECONDS, 0.0),
                "seconds": time.perf_counter() - started,
            }
            return total
        raise SiteFailed("no answer in time")

    def _read(self, content: RecordDict) -> dict[str, Tensor]:
        if DECRYPTED not in content.array_records:
            raise UpdateRefused(f"it comes without {DECRYPTED}")
        arrays = from_arrays(content.array_records[DECRYPTED])
        if set(arrays) != {DECRYPTED}:
            raise UpdateRefused(f"a record of {len(arrays)} arrays, expected one")
        values = arrays[DECRYPTED]
        return checked_tensors(self._manifest, tensors_of(values, expected_tensors(self._manifest)))


def told_to_sites(plan: RoundPlan) -> dict[str, int]:
    """What a round's config says of encryption; nothing where updates travel in plain."""
    return {} if plan.encrypted is None else {ENCRYPTED_SITES: len(plan.sites)}
