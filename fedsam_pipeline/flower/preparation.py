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

from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.flower.audit import trail_fault
from fedsam_pipeline.flower.client_app import SiteProcess, answer_safely, make_client_app
from fedsam_pipeline.flower.exchange import RunStopped, answers
from fedsam_pipeline.flower.messages import CONFIG, METRICS, NUM_EXAMPLES, QUERY_FINGERPRINT, QUERY_PLAN
from fedsam_pipeline.flower.named_grid import NamedGrid
from fedsam_pipeline.flower.replies import SiteFailed
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.flower.told_sums import MAX_ANSWER
from fedsam_pipeline.logs import printable

log = logging.getLogger(__name__)
Keys = Mapping[str, Any]
"""values by key, as a SuperNode is configured with them, or as a message asks for them"""
STATE, TOLD, PREPARING, READY = "state", "told", "preparing", "ready"
POLL_SECONDS = 2.0
"""from one question to the next; a site that is not ready lets an answer wait by itself"""
UNSIGNED = 7
"""Flower's error code of an app that no trusted entity of the site has signed"""
FAILURES_IN_A_ROW = 5
"""of a site's process, until the run gives up"""
SAY_SECONDS = 60.0
"""from one line of the log that names who is waited for to the next"""
ANSWER_SECONDS = 120.0
"""an answer is waited for; a site that does not give one is asked again"""


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


def ask_fingerprints(
    grid: NamedGrid, sites: Collection[str], config: Mapping[str, str], heads: AuditHeads, stop: threading.Event
) -> dict[str, str]:
    """What the sites tell of their data; see :func:`ask_until_ready`."""
    return ask_until_ready(grid, sites, QUERY_FINGERPRINT, config, heads, stop)


def ask_plan(
    grid: NamedGrid, sites: Collection[str], config: Mapping[str, str], heads: AuditHeads, stop: threading.Event
) -> dict[str, str]:
    """Offers a plan; returns once every site has accepted it and preprocessed its cases, see :func:`ask_until_ready`."""
    return ask_until_ready(grid, sites, QUERY_PLAN, config, heads, stop)


def ask_until_ready(
    grid: NamedGrid, sites: Collection[str], kind: str, config: Mapping[str, str], heads: AuditHeads, stop: threading.Event
) -> dict[str, str]:
    """Asks every node until all sites are ready. Nodes may come at any time.

    Args:
        grid: Flower's connection to the sites.
        sites: names of those that must be ready.
        kind: type of the message.
        config: what is asked, with the key ``run_id``.
        heads: of the audit trails that the sites keep before a run.
        stop: set by another thread to end the waiting.

    Returns:
        What each site told, sorted by site.

    Raises:
        SiteFailed: a site refuses, or fails.
        RunStopped: someone asked to stop.
    """
    told: dict[str, str] = {}
    failures: Counter[str] = Counter()
    said = -math.inf
    while missing := sorted(set(sites) - told.keys()):
        if time.monotonic() - said >= SAY_SECONDS:
            log.info("%s: waiting for %s", kind, ", ".join(missing))
            said = time.monotonic()
        nodes = [node for node in sorted(grid.get_node_ids()) if grid.site_of[node] in missing]
        messages = [Message(RecordDict({CONFIG: ConfigRecord(dict(config))}), dst_node_id=node, message_type=kind) for node in nodes]
        started, quiet = time.monotonic(), {grid.site_of[node] for node in nodes}
        for message in answers(grid, messages, ANSWER_SECONDS, stop):
            site = grid.site_of[message.metadata.src_node_id]
            quiet.discard(site)
            _watch_failures(message, site, failures)
            text = _read(message, site, config["run_id"], heads)
            if text is not None:
                told[site] = text
        for site in sorted(quiet):
            log.warning("%s did not answer within %.0f s; it is asked again", site, ANSWER_SECONDS)
        heads.keep()
        if set(sites) - told.keys() and stop.wait(max(0.0, POLL_SECONDS - (time.monotonic() - started))):
            raise RunStopped("the run was stopped while sites were getting ready")
    return {site: told[site] for site in sorted(told)}


def _watch_failures(message: Message, site: str, failures: "Counter[str]") -> None:
    """Ends the waiting where a site's process will never answer."""
    if not message.has_error():
        failures.pop(site, None)
        return
    failures[site] += 1
    if message.error.code == UNSIGNED:
        raise SiteFailed(
            f"{site} does not run this app: none of its trusted entities has signed it. Was the SuperLink started with the kit's "
            "start.sh, and by the version of fedsam-pipeline that this was submitted with?"
        )
    if failures[site] == FAILURES_IN_A_ROW:
        raise SiteFailed(
            f"the process of {site} failed {FAILURES_IN_A_ROW} times (Flower error {message.error.code}): see that SuperNode's log"
        )


def _read(message: Message, registered: str, run_id: str, heads: AuditHeads) -> str | None:
    """What a site tells; ``None`` while it prepares, or where its process failed."""
    if message.has_error():
        log.warning("the process of %s failed (Flower error %d); it is asked again", registered, message.error.code)
        return None
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
