"""The round loop: sends rounds out, checks what comes back, hands it to the aggregator, keeps checkpoints.

Flower's own ``Strategy.start`` always counts from round 1, waits for ever for lost nodes and ends the run at one inconsistent reply; here
a run continues from any round, and replies are checked before the strategy sees them.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsam_pipeline.evaluation.summary import combine_sites
from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.coding import Encoded, decode
from fedsam_pipeline.federation.codec.downlink import Downlink
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.flower.aggregator import Aggregator
from fedsam_pipeline.flower.attendance import Attendance
from fedsam_pipeline.flower.audit import trail_fault
from fedsam_pipeline.flower.encrypted_round import EncryptedRound, told_to_sites
from fedsam_pipeline.flower.exchange import POLL_SECONDS, RunStopped, answers, wait_for_nodes
from fedsam_pipeline.flower.messages import (
    CONFIG,
    DECODE_SECONDS,
    ENCODE_SECONDS,
    EVALUATE_FOLD,
    FOLDED,
    KEEP_MASKS,
    NUM_EXAMPLES,
    PAYLOAD,
    TRAIN_ROUND,
    from_record,
    message_bytes,
    to_arrays,
    to_record,
)
from fedsam_pipeline.flower.named_grid import SomeNodes
from fedsam_pipeline.flower.replies import (
    REPLY_KEYS,
    SiteFailed,
    SiteReply,
    SpeakersConfused,
    check_update_numbers,
    lacks_reference,
    read_reply,
)
from fedsam_pipeline.flower.rounds import FinalScores, RoundPlan, RoundRecord, Sent
from fedsam_pipeline.flower.work_clock import WorkClock
from fedsam_pipeline.specs.manifest import Manifest

log = logging.getLogger(__name__)


class RoundLoop:
    """Runs rounds on a grid.

    Args:
        grid: Flower's connection to the sites.
        aggregator: makes one adapter of the sites' updates.
        plan: of the run.
        manifest: what may travel.
        checkpoints: one is written after every round.
        downlink: what the sites hold; after ``evaluate`` it is the scored model, bit for bit.
        on_round: called with each finished round's record.
        heads: of the sites' audit trails; an answer that contradicts them is refused.
        stop: set by another thread to end the run while it waits for sites.
        admit: called before each exchange, and while sites are waited for, with the sites that have turned out to know nothing of the run:
            lets in whoever has become ready.

    Attributes:
        clock: of the sites' work.
    """

    def __init__(
        self,
        grid: Grid,
        aggregator: Aggregator,
        plan: RoundPlan,
        manifest: Manifest,
        checkpoints: CheckpointSeries,
        downlink: Downlink,
        on_round: Callable[[RoundRecord], None],
        heads: AuditHeads,
        stop: threading.Event | None = None,
        admit: Callable[[Collection[str]], None] | None = None,
    ) -> None:
        self._admit = admit or (lambda _strangers: None)
        self._strangers: set[str] = set()
        self._grid, self._aggregator, self._plan = grid, aggregator, plan
        self._manifest, self._checkpoints, self._downlink, self._on_round = manifest, checkpoints, downlink, on_round
        self._heads, self._stop = heads, stop or threading.Event()
        self.clock = WorkClock()
        self._seen: set[str] = set()
        """sites that have answered so far"""
        self._took: dict[int, float] = {}
        """node to the seconds of its last answer"""
        self._encrypted: EncryptedRound | None = None

    def run(self, tensors: dict[str, Tensor], rounds_done: int) -> dict[str, Tensor]:
        """Runs all rounds after ``rounds_done``; returns the federated tensors after the last.

        Raises:
            SiteFailed: fewer sites than a round needs gave a usable answer.
        """
        for round_number in range(rounds_done + 1, self._plan.schedule.rounds + 1):
            tensors, record = self._round(tensors, round_number)
            self._on_round(record)
            # after the records: a round without a checkpoint is done again, records and all
            self._checkpoints.save(round_number, tensors | self._aggregator.state() | self._downlink.state())
            self._aggregator.keep()
        return tensors

    def evaluate(self, tensors: dict[str, Tensor], *, keep_masks: bool = False) -> FinalScores:
        """Scores the final model on every site's whole fold; ``keep_masks``: the sites keep the masks for choosing postprocessing."""
        started = time.perf_counter()
        config = self._config(self._plan.schedule.rounds, validate=True)
        config[KEEP_MASKS] = keep_masks
        configs = dict.fromkeys(self._present(), config)
        replies, refused, missing, down = self._exchange(self._downlink.send(tensors), configs, EVALUATE_FOLD)
        traffic = self._traffic(self._plan.schedule.rounds, down, sorted(replies + refused, key=_site), EVALUATE_FOLD)
        own = {site: dice for reply in replies for site, dice in reply.validation.items()}
        shared = {site: dice for reply in replies for site, dice in reply.validation_shared.items()}
        personal = bool(self._manifest.personal)
        traffic |= {"seconds": time.perf_counter() - started}
        return FinalScores(shared if personal else own, own if personal else None, _reasons(refused), missing, traffic)

    def _round(self, tensors: dict[str, Tensor], round_number: int) -> tuple[dict[str, Tensor], RoundRecord]:
        started = time.perf_counter()
        plan = self._plan
        validate = plan.val_every > 0 and (round_number - 1) % plan.val_every == 0 and round_number > 1
        config = self._config(round_number, validate=validate)
        config.update(told_to_sites(plan))
        if plan.encrypted is not None:
            self._encrypted = EncryptedRound(self._grid, plan, plan.encrypted, self._manifest, self._heads, self._stop)
        there = SomeNodes(self._grid, self._present())
        encoded = self._downlink.send(tensors)
        configs = {
            message.metadata.dst_node_id: message.content.config_records[CONFIG]
            for message in self._aggregator.configure(round_number, self._downlink.held, config, there)
        }
        replies, refused, missing, down = self._exchange(encoded, configs, TRAIN_ROUND)
        if self._encrypted is not None:
            self._encrypted.finish(round_number, self._downlink.held, self._aggregator)
        aggregated = self._aggregator.result()
        traffic = self._traffic(round_number, down, sorted(replies + refused, key=_site), TRAIN_ROUND)
        if self._encrypted is not None:
            self._encrypted.note(traffic)
        seconds = time.perf_counter() - started
        validation = {site: dice for reply in replies for site, dice in reply.validation.items()}
        self._aggregator.scored({reply.site: combine_sites(reply.validation).dice for reply in replies if reply.validation})
        progress: dict[str, Any] = {
            "event": "round",
            "round": round_number,
            "learning_rate": replies[0].metrics["learning_rate"],
            "sites": {reply.site: {key: reply.metrics[key] for key in (NUM_EXAMPLES, *REPLY_KEYS)} for reply in replies},
            "refused": _reasons(refused),
            "missing": missing,
            "validated_round": round_number - 1 if validation else None,
            "validation": {site: dice.to_dict(plan.class_names) for site, dice in validation.items()},
            "dice": _finite(combine_sites(validation).dice) if validation else None,
            "bytes_up": sum(entry["up"]["bytes_message"] for entry in traffic["sites"].values()),
            "bytes_down": sum(entry["down"]["bytes_message"] for entry in traffic["sites"].values()),
            "seconds": seconds,
            "privacy": self._aggregator.spent,
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
                **self._aggregator.told,
            }
        )

    def _exchange(
        self, encoded: Encoded, configs: dict[int, ConfigRecord], kind: str
    ) -> tuple[list[SiteReply], list[SiteReply], dict[str, str], dict[int, Sent]]:
        """Sends, waits, checks; an update goes to the aggregator as it arrives and is dropped.

        A node that does not hold the payload's reference (a joiner, or one whose disk was lost) says so and gets the full state at once.

        Returns:
            The replies; those whose update was refused (the round goes on without them); site to the reason why there is none; what went to
            every node. Replies are sorted by site.
        """
        sent = next(iter(configs.values()))
        down = dict.fromkeys(configs, Sent())
        replies: list[SiteReply] = []
        lacking: set[int] = set()
        attendance = Attendance(self._plan, self._heads, configs)
        self.clock.next_exchange(now=time.perf_counter())
        for node, message in self._arriving(encoded, configs, kind, down):
            try:
                if lacks_reference(message):
                    site = self._speaker(str(message.content.config_records[CONFIG].get("site")), message)
                    trail_fault(self._heads, message, site)  # noted; what it sends next is taken, or not
                    lacking.add(node)
                else:
                    self._collect(message, sent, kind, replies)
            except SiteFailed as error:
                attendance.failed(node, error)
            del message  # an update is not kept while the next one is waited for
        if lacking:
            log.info("%d of %d sites get the full state", len(lacking), len(configs))
            again = {node: config for node, config in configs.items() if node in lacking}
            for node, message in self._arriving(self._downlink.full(), again, kind, down):
                try:
                    self._collect(message, sent, kind, replies)
                except SiteFailed as error:
                    attendance.failed(node, error)
                del message
        missing = attendance.missing([reply.site for reply in replies])
        self._heads.keep()  # each site has one node that speaks for it
        replies.sort(key=_site)
        taken, refused = [reply for reply in replies if reply.refused is None], [reply for reply in replies if reply.refused is not None]
        self._strangers |= attendance.strangers
        self._seen |= {reply.site for reply in replies}
        if not taken and refused:
            raise SiteFailed(f"every answer was refused; {refused[0].site}: {refused[0].refused}")
        attendance.enough(len(taken), missing | _reasons(refused))
        return taken, refused, missing, down

    def _present(self) -> list[int]:
        """The nodes of an exchange: enough of them, and those that have become ready since the last one."""
        number = self._plan.quorum if self._heads.registered else len(self._plan.sites)  # in simulation all come, one by one
        nodes = wait_for_nodes(self._grid, number, self._stop, self._plan.timeout, self._let_in)
        ends = time.monotonic() + self._plan.wait_lost
        if self._plan.wait_lost and (gone := self._gone(nodes)):
            log.info("%s took part and is not there; waiting, %g s at most", ", ".join(sorted(gone)), self._plan.wait_lost)
            while (gone := self._gone(self._grid.get_node_ids())) and time.monotonic() < ends:
                if self._stop.wait(POLL_SECONDS):
                    raise RunStopped(f"the run was stopped while {', '.join(sorted(gone))} was waited for")
            return wait_for_nodes(self._grid, number, self._stop, self._plan.timeout, self._let_in)
        return nodes

    def _gone(self, nodes: Iterable[int]) -> set[str]:
        """Sites that answered earlier and are not among these nodes."""
        return self._seen - {self._heads.site_of(node) or "" for node in nodes}

    def _let_in(self) -> None:
        strangers, self._strangers = self._strangers, set()
        self._admit(strangers)

    def _collect(self, message: Message, sent: ConfigRecord, kind: str, replies: list[SiteReply]) -> None:
        """Checks one answer and adds it to the replies; one that is refused is marked so."""
        arrived = time.perf_counter()
        reply = read_reply(message, sent, self._plan.class_names)
        fault = trail_fault(self._heads, message, self._speaker(reply.site, message))
        if reply.site in {other.site for other in replies}:
            raise SiteFailed(f"{reply.site} answers twice")
        self._took[reply.node] = reply.busy_seconds
        try:
            if fault is not None:
                raise UpdateRefused(fault)
            if kind == TRAIN_ROUND:
                self._take(reply, message.content, int(sent["round"]))  # type: ignore[arg-type]
        except UpdateRefused as error:
            what = "update" if kind == TRAIN_ROUND else "answer"
            log.warning("the %s of %s was refused, the round goes on without it: %s", what, reply.site, error)
            reply.refused = str(error)
        else:
            self.clock.answered(now=arrived, busy=reply.busy_seconds, own=reply.own_seconds)
        replies.append(reply)

    def _speaker(self, site: str, message: Message) -> str:
        """The site, if there is one of this name and no other node has answered for it."""
        if site not in self._plan.sites:
            raise SiteFailed(f"there is no site {site!r:.40} in this run")
        if not self._heads.claim(site, message.metadata.src_node_id):
            kind = SiteFailed if self._heads.registered else SpeakersConfused  # who of the two is wrong is known, or not
            raise kind(f"two nodes answer for the same site, {site}, or one for two")
        return site

    def _take(self, reply: SiteReply, content: RecordDict, round_number: int) -> None:
        """Decodes and checks an update and hands it on."""
        check_update_numbers(reply)
        if self._encrypted is not None:
            self._encrypted.take(reply, content)
            return
        if PAYLOAD not in content.array_records:
            raise UpdateRefused(f"it comes without {PAYLOAD}")
        started = time.perf_counter()
        payload = from_record(content.array_records[PAYLOAD])
        reply.bytes_after = len(payload)
        tensors = decode(payload, self._downlink.held, self._manifest)
        self._plan.bound(round_number).check(tensors, self._downlink.held)
        reply.decode_seconds = time.perf_counter() - started
        reply.num_tensors = len(tensors)
        self._aggregator.add(reply.site, tensors, int(reply.metrics[NUM_EXAMPLES]))

    def _arriving(
        self, encoded: Encoded, configs: dict[int, ConfigRecord], kind: str, down: dict[int, Sent]
    ) -> Iterator[tuple[int, Message]]:
        """Sends and yields nodes and answers as they come; ends at the timeout of the plan, and at once when the run is stopped.

        Where not all are asked at once, those that took longest the last time come first: the fewer wait for the last one.
        """
        records: dict[str, ArrayRecord] = {PAYLOAD: to_record(encoded.payload)}
        if residuals := self._aggregator.residuals:
            records[FOLDED] = to_arrays(residuals)
        folded = sum(4 * tensor.numel() for tensor in residuals.values())
        contents = {id(config): RecordDict({**records, CONFIG: config}) for config in configs.values()}  # most nodes get the same
        sizes = {key: message_bytes(content) for key, content in contents.items()}
        messages = []
        at_once = self._plan.window is None or len(configs) <= self._plan.window
        lasts = self._plan.timeout if at_once else None  # a site that comes back does not work on what is over; counts from now
        for node, config in sorted(configs.items(), key=lambda item: (-self._took.get(item[0], 0.0), item[0])):
            messages.append(Message(contents[id(config)], dst_node_id=node, message_type=kind, ttl=lasts))
            down[node] += Sent(folded, encoded.figures.bytes_after, sizes[id(config)], encoded.figures.seconds)
        yield from answers(self._grid, messages, self._plan.timeout, self._stop, window=self._plan.window)

    def _traffic(self, round_number: int, down: dict[int, Sent], replies: list[SiteReply], kind: str) -> dict[str, Any]:
        count, before = len(self._manifest.federated), 4 * self._manifest.federated_parameters
        return {
            "round": round_number,
            "message": kind,
            "wire": self._plan.wire,
            "sites": {
                reply.site: {
                    "down": {
                        "tensors": count,
                        "bytes_payload_before": before + down[reply.node].bytes_folded,
                        "bytes_payload_after": down[reply.node].bytes_after + down[reply.node].bytes_folded,
                        "bytes_message": down[reply.node].bytes_message,
                        "codec_seconds": down[reply.node].encode_seconds + reply.metrics.get(DECODE_SECONDS, 0.0),
                    },
                    "up": {
                        "tensors": reply.num_tensors,
                        "bytes_payload_before": before if reply.num_tensors else 0,
                        "bytes_payload_after": reply.bytes_after,
                        "bytes_message": reply.num_bytes,
                        "codec_seconds": reply.metrics.get(ENCODE_SECONDS, 0.0) + reply.decode_seconds,
                    },
                }
                for reply in replies
            },
        }


def _site(reply: SiteReply) -> str:
    return reply.site


def _reasons(refused: list[SiteReply]) -> dict[str, str]:
    return {reply.site: str(reply.refused) for reply in refused}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
