"""Asking until all sites are ready: who waits, who ends the run, and what is said meanwhile."""

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.flower import preparation
from fedsam_pipeline.flower.audit import SiteTrail
from fedsam_pipeline.flower.exchange import RunStopped
from fedsam_pipeline.flower.messages import CONFIG, QUERY_FINGERPRINT
from fedsam_pipeline.flower.named_grid import NamedGrid
from fedsam_pipeline.flower.preparation import Preparation
from fedsam_pipeline.flower.replies import SiteFailed
from tests.flower.grids import DirectGrid

SITES = ("site_a", "site_b")
Answer = Callable[[str, int], dict[str, Any] | Error | None]
"""from site and number of the question (from 1) to the answer's config, Flower's error, or none"""


class Hospitals(DirectGrid):
    """Two registered sites, and a node of another federation."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        super().__init__(())
        self._folder, self._answer, self.asked = folder, answer, dict.fromkeys(SITES, 0)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=name) for node, name in enumerate((*SITES, "elsewhere"), start=1)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            site = SITES[message.metadata.dst_node_id - 1]
            self.asked[site] += 1
            name = f"m{site}{self.asked[site]}"
            ids.append(name)
            message.metadata.__dict__["_message_id"] = name
            stamped = Message(message.content, dst_node_id=message.metadata.dst_node_id, message_type=message.metadata.message_type)
            stamped.metadata.__dict__["_message_id"] = name
            answer = self._answer(site, self.asked[site])
            if isinstance(answer, Error):
                self._replies.append(Message(answer, reply_to=stamped))
            elif answer is not None:
                content = RecordDict({CONFIG: ConfigRecord({"site": site, "run_id": "r1", **answer})})
                if "failure" not in answer:
                    SiteTrail(site, self._folder / site, stamped).leaving(content)
                self._replies.append(Message(content, reply_to=stamped))
        return ids


def asked(
    folder: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch, quorum: int = 2, patience: float = 60.0
) -> tuple[dict[str, str], Hospitals]:
    for name in ("POLL_SECONDS", "ANSWER_SECONDS", "SAY_SECONDS"):
        monkeypatch.setattr(preparation, name, 0.0)
    grid = Hospitals(folder, answer)
    sites = NamedGrid(grid, SITES)
    heads = AuditHeads(folder / "server", sites.site_of)
    asking = Preparation(sites, SITES, QUERY_FINGERPRINT, {"run_id": "r1"}, heads, threading.Event(), quorum=quorum, patience=patience)
    return asking.until_ready(), grid


def ready(site: str) -> dict[str, Any]:
    return {"state": "ready", "told": f"of {site}"}


def test_a_site_is_asked_until_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, grid = asked(
        tmp_path, lambda site, number: ready(site) if number > 2 or site == "site_a" else {"state": "preparing"}, monkeypatch
    )
    assert told == {"site_a": "of site_a", "site_b": "of site_b"}
    assert grid.asked == {"site_a": 1, "site_b": 3}


def test_a_site_that_is_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fedsam_pipeline"):
        asked(tmp_path, lambda site, number: ready(site) if number > 2 or site == "site_a" else None, monkeypatch)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "query.fingerprint: waiting for site_a, site_b" and "query.fingerprint: waiting for site_b" in said
    assert "site_b did not answer within 0 s; it is asked again" in said


def test_a_process_may_fail_some_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(tmp_path, lambda site, number: ready(site) if number > 4 else Error(8, "crashed"), monkeypatch)
    with pytest.raises(SiteFailed, match=r"the process of site_[ab] failed 5 times"):
        asked(tmp_path / "again", lambda _site, _number: Error(8, "crashed"), monkeypatch)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Error(ErrorCode.INVALID_FAB, "unsigned"), "none of its trusted entities has signed it"),
        ({"failure": "bad_input", "failure_id": "ab12"}, "^site_b reports bad_input, id ab12: see that site's log"),
        ({"site": "unknown", "failure": "internal\x1b[2J", "failure_id": "x\n"}, r"^site_b reports 'internal\\x1b\[2J', id 'x\\n'"),
        ({"site": "site_a", "state": "ready", "told": "a lie"}, "^site_b answers as site_a"),
        ({"site": "elsewhere", "state": "ready", "told": "a lie"}, "^site_b answers as elsewhere"),
        ({"run_id": "r2", "state": "ready", "told": "x"}, "site_b answers for another run"),
        ({"state": "ready"}, "site_b gives an answer that cannot be read"),
        ({"state": "ready", "told": 3}, "site_b gives an answer that cannot be read"),
        ({"state": "ready", "told": "x" * (1 << 23)}, "site_b gives an answer that cannot be read"),
        ({"state": "done", "told": "x"}, "site_b gives an answer that cannot be read"),
    ],
)
def test_what_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | Error, says: str) -> None:
    with pytest.raises(SiteFailed, match=says):
        asked(tmp_path, lambda site, _number: answer if site == "site_b" else ready(site), monkeypatch)


def test_it_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = NamedGrid(Hospitals(tmp_path, lambda _site, _number: {"state": "preparing"}), SITES)
    stop = threading.Event()
    stop.set()
    heads = AuditHeads(tmp_path / "server", grid.site_of)
    asking = Preparation(grid, SITES, QUERY_FINGERPRINT, {"run_id": "r1"}, heads, stop, quorum=2, patience=60.0)
    with pytest.raises(RunStopped):
        asking.until_ready()


def test_it_goes_on_without_a_site_that_does_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told, _ = asked(tmp_path, lambda site, _number: ready(site) if site == "site_a" else None, monkeypatch, quorum=1, patience=0.3)
    assert told == {"site_a": "of site_a"}
    assert "query.fingerprint: it goes on without site_b: not ready" in caplog.text


def test_it_goes_on_at_once_without_a_site_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = {"failure": "agreement_broken", "failure_id": "ab12"}
    told, _ = asked(tmp_path, lambda site, _number: ready(site) if site == "site_a" else refusal, monkeypatch, quorum=1)
    assert told == {"site_a": "of site_a"}
    assert "it goes on without site_b: site_b reports agreement_broken, id ab12" in caplog.text


def test_too_few_sites_are_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SiteFailed, match=r"1 site\(s\) answered within 0\.2 s, 2 are needed; missing: site_b"):
        asked(tmp_path, lambda site, _number: ready(site) if site == "site_a" else None, monkeypatch, patience=0.2)


def test_a_site_that_prepares_for_long_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(site: str, number: int) -> dict[str, Any]:
        return ready(site) if number > 200 or site == "site_a" else {"state": "preparing"}

    told, grid = asked(tmp_path, late, monkeypatch, patience=0.01)
    assert sorted(told) == ["site_a", "site_b"] and grid.asked["site_b"] == 201


def test_a_site_that_is_busy_or_away_is_not_taken_for_one_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SuperLink says so itself once a question has lasted too long."""
    busy = Error(ErrorCode.MESSAGE_UNAVAILABLE, "expired")
    told, grid = asked(tmp_path, lambda site, number: ready(site) if number > 9 or site == "site_a" else busy, monkeypatch)
    assert sorted(told) == ["site_a", "site_b"] and grid.asked["site_b"] == 10


def test_what_a_site_tells_is_checked_before_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(site: str, text: str) -> None:
        if site == "site_b":
            raise SiteFailed(f"what {site} tells cannot be read", site=site)

    monkeypatch.setattr(preparation, "POLL_SECONDS", 0.0)
    sites = NamedGrid(Hospitals(tmp_path, lambda site, _number: ready(site)), SITES)
    heads = AuditHeads(tmp_path / "server", sites.site_of)
    config = {"run_id": "r1"}
    one = Preparation(sites, SITES, QUERY_FINGERPRINT, config, heads, threading.Event(), quorum=1, patience=60.0, check=check)
    assert list(one.until_ready()) == ["site_a"]
    both = Preparation(sites, SITES, QUERY_FINGERPRINT, config, heads, threading.Event(), quorum=2, patience=60.0, check=check)
    with pytest.raises(SiteFailed, match="what site_b tells cannot be read"):
        both.until_ready()
