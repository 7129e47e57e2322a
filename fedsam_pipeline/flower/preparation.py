"""Before round 1: the sites measure their cases, then get ready for the plan that is made of what they told.

``query.fingerprint`` and ``query.plan`` are asked again and again until a site is ready: measuring and preprocessing take minutes, and a
handler answers at once.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.flower.audit import trail_fault
from fedsam_pipeline.flower.client_app import SiteProcess, answer_safely, make_client_app
from fedsam_pipeline.flower.exchange import RunStopped, answers
from fedsam_pipeline.flower.messages import CONFIG, METRICS, NUM_EXAMPLES
from fedsam_pipeline.flower.named_grid import NamedGrid
from fedsam_pipeline.flower.replies import ABSENT, SiteFailed
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.flower.told_sums import MAX_ANSWER
from fedsam_pipeline.logs import printable

log = logging.getLogger(__name__)
Keys = Mapping[str, Any]
"""values by key, as a SuperNode is configured with them, or as a message asks for them"""
STATE, TOLD, PREPARING, READY = "state", "told", "preparing", "ready"
POLL_SECONDS = 2.0
"""from one question to the next; a site that is not ready lets an answer wait by itself"""
FAILURES_IN_A_ROW = 5
"""of a site's process, until the run gives up"""
SAY_SECONDS = 60.0
"""from one line of the log that names who is waited for to the next"""
ANSWER_SECONDS = 120.0
"""an answer is waited for; a site that does not give one is asked again"""
LATE_SECONDS = 60.0
"""the same between rounds, which wait meanwhile"""


@dataclass(frozen=True)
class Told:
    """A site's answer: what it tells once it is ready; ``None`` while it is not."""

    text: str | None


class PreparedSite(SiteProcess, Protocol):
    """What a site does before round 1. Both start the work where nobody has, and return at once."""

    def fingerprint(self, config: Keys) -> Told:
        """JSON of the fingerprint that may leave the site."""
        ...

    def prepare(self, config: Keys) -> Told:
        """Checks what is asked for, and preprocesses; tells how many of its cases are validated in some fold."""
        ...


def make_site_app(find_site: Callable[[Keys, Keys], PreparedSite], find_setup: Callable[[Keys, Keys], SiteSetup]) -> ClientApp:
    """The ClientApp of a real federation: that of the simulation, which also prepares itself.

    Args:
        find_site: from the SuperNode's configuration and what the message asks, the site before a run.
        find_setup: from the same, the site in a run.
    """

    def site(context: Context, content: RecordDict) -> PreparedSite:
        return find_site(context.node_config, content.config_records[CONFIG])

    def setup(context: Context, content: RecordDict) -> SiteSetup:
        return find_setup(context.node_config, content.config_records[CONFIG])

    app = make_client_app(setup)

    @app.query("fingerprint")
    def fingerprint(message: Message, context: Context) -> Message:
        return answer_safely(message, context, site, _fingerprint)

    @app.query("plan")
    def plan(message: Message, context: Context) -> Message:
        return answer_safely(message, context, site, _plan)

    return app


def _fingerprint(content: RecordDict, site: PreparedSite) -> RecordDict:
    return _answer(content, site, site.fingerprint)


def _plan(content: RecordDict, site: PreparedSite) -> RecordDict:
    return _answer(content, site, site.prepare)


def _answer(content: RecordDict, site: PreparedSite, work: Callable[[Keys], Told]) -> RecordDict:
    asked = content.config_records[CONFIG]
    told = work(asked).text
    state = {STATE: PREPARING} if told is None else {STATE: READY, TOLD: told}
    answer = ConfigRecord({"run_id": asked["run_id"], "site": site.site, **state})
    return RecordDict({CONFIG: answer, METRICS: MetricRecord({NUM_EXAMPLES: 0})})


class Preparation:
    """One question, asked until enough sites are ready, and afterwards of whoever comes.

    Args:
        grid: Flower's connection to the sites.
        sites: names of all.
        kind: type of the message.
        config: what is asked, with the key ``run_id``.
        heads: of the audit trails that the sites keep before a run.
        stop: set by another thread to end the waiting.
        quorum: sites that it takes.
        patience: seconds that the others are waited for once there are enough, and that too few may be there before that.
        check: of a site and what it told; what it raises, a ``SiteFailed``, leaves that site out.

    Attributes:
        told: what each site that is ready told.
    """

    def __init__(
        self,
        grid: NamedGrid,
        sites: Collection[str],
        kind: str,
        config: Mapping[str, str],
        heads: AuditHeads,
        stop: threading.Event,
        *,
        quorum: int,
        patience: float,
        check: Callable[[str, str], object] = lambda _site, _text: None,
    ) -> None:
        self._grid, self._sites, self._kind, self._config = grid, frozenset(sites), kind, dict(config)
        self._heads, self._stop, self._quorum, self._patience, self._check = heads, stop, quorum, patience, check
        self.told: dict[str, str] = {}
        self._crashes: Counter[str] = Counter()
        self._refusals: dict[str, SiteFailed] = {}

    def until_ready(self) -> dict[str, str]:
        """Asks every node again and again. Nodes may come at any time.

        Returns:
            What each site told that is ready, sorted by site: of all, or of enough where the others did not come in time or refuse.

        Raises:
            SiteFailed: so many refuse, fail or stay away that there are not enough.
            RunStopped: someone asked to stop.
        """
        said, seen, enough = -math.inf, time.monotonic(), math.inf
        while missing := sorted(self._sites - self.told.keys()):
            began = time.monotonic()
            if began - said >= SAY_SECONDS:
                log.info("%s: waiting for %s", self._kind, ", ".join(missing))
                said = began
            alive = self.ask(ANSWER_SECONDS)
            now = time.monotonic()
            if len(alive | self.told.keys()) >= self._quorum:
                seen = now
            if len(self.told) >= self._quorum:
                enough = min(enough, now)
                if now - enough >= self._patience or self._sites <= self.told.keys() | self._refusals.keys():
                    break
            elif now - seen >= self._patience:
                there = alive | self.told.keys()
                raise SiteFailed(
                    f"{self._kind}: {len(there)} site(s) answered within {self._patience:g} s, {self._quorum} are needed; "
                    f"missing: {', '.join(sorted(self._sites - there))}"
                )
            if self._stop.wait(max(0.0, POLL_SECONDS - (now - began))):
                raise RunStopped("the run was stopped while sites were getting ready")
        for site in sorted(self._sites - self.told.keys()):
            log.warning("%s: it goes on without %s: %s", self._kind, site, self._refusals.get(site, "not ready"))
        return {site: self.told[site] for site in sorted(self.told)}

    def ask(self, timeout: float) -> set[str]:
        """Asks once all that are there and not ready.

        Args:
            timeout: seconds that the answers are waited for.

        Returns:
            The sites that are ready now, or preparing.

        Raises:
            SiteFailed: so many refuse that there are not enough.
        """
        there = {node.node_id: node.name for node in self._grid.get_nodes() if node.name not in self.told}
        content = {node: RecordDict({CONFIG: ConfigRecord(dict(self._config))}) for node in sorted(there)}
        messages = [Message(each, dst_node_id=node, message_type=self._kind, ttl=timeout or None) for node, each in content.items()]
        silent, alive = set(there.values()), set[str]()
        for node, message in answers(self._grid, messages, timeout, self._stop):
            site = there[node]
            silent.discard(site)
            try:
                if self._crashed(message, site):
                    continue
                text = _read(message, site, self._config["run_id"], self._heads)
                if text is not None:
                    self._check(site, text)
            except SiteFailed as error:
                self._refused(site, error)
                continue
            self._refusals.pop(site, None)
            alive.add(site)
            if text is not None:
                self.told[site] = text
        for site in sorted(silent):
            log.warning("%s did not answer within %.0f s; it is asked again", site, timeout)
        self._heads.keep()
        return alive

    def forget(self, site: str) -> None:
        """A site that was ready knows nothing of it any more: it is asked again."""
        self.told.pop(site, None)

    def _refused(self, site: str, error: SiteFailed) -> None:
        if str(self._refusals.get(site)) != str(error):
            log.warning("%s", error)
        self._refusals[site] = error
        if len(self._sites) - len(self._refusals) < self._quorum:
            raise error

    def _crashed(self, message: Message, site: str) -> bool:
        """Whether the site gave no answer this time; ``SiteFailed`` where it will never do."""
        if not message.has_error():
            self._crashes.pop(site, None)
            return False
        code = message.error.code
        if code in ABSENT:  # it may be at other work, or away: that says nothing of what it will do
            log.warning("%s: %s; it is asked again", site, ABSENT[code])
            return True
        self._crashes[site] += 1
        if code == ErrorCode.INVALID_FAB:
            raise SiteFailed(
                f"{site} does not run this app: none of its trusted entities has signed it. Was the SuperLink started with the kit's "
                "start.sh, and by the version of fedsam-pipeline that this was submitted with?"
            )
        if self._crashes[site] >= FAILURES_IN_A_ROW:
            raise SiteFailed(f"the process of {site} failed {FAILURES_IN_A_ROW} times (Flower error {code}): see that SuperNode's log")
        log.warning("the process of %s failed (Flower error %d); it is asked again", site, code)
        return True


def _read(message: Message, registered: str, run_id: str, heads: AuditHeads) -> str | None:
    """What a site tells; ``None`` while it prepares."""
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    if "failure" in config:
        code, opaque = printable(config["failure"], 40), printable(config.get("failure_id"), 16)
        raise SiteFailed(f"{registered} reports {code}, id {opaque}: see that site's log", code)
    if config.get("site") != registered:
        raise SiteFailed(f"{registered} answers as {printable(config.get('site'), 40)}")
    if (fault := trail_fault(heads, message, registered)) is not None:
        raise SiteFailed(f"an answer of {registered} was refused: {fault}")
    if config.get("run_id") != run_id:
        raise SiteFailed(f"{registered} answers for another run")
    if config.get(STATE) == PREPARING:
        return None
    text = config.get(TOLD)
    if config.get(STATE) != READY or not isinstance(text, str) or len(text) > MAX_ANSWER:
        raise SiteFailed(f"{registered} gives an answer that cannot be read")
    return text
