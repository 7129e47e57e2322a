"""The audit trail in a federation: a line for every message, with its bytes; nothing leaves without one; heads are held to."""

import errno
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from flwr.app import Message

from fedsam_pipeline.federation.audit_chain import AUDIT_FILE, START, AuditLine, Head, read_chain
from fedsam_pipeline.federation.audit_heads import HEADS_FILE, fault_against, load_heads
from fedsam_pipeline.flower.messages import AUDIT_HEAD, AUDIT_PREVIOUS, CONFIG, PAYLOAD, content_sha256, message_bytes
from fedsam_pipeline.flower.replies import SiteFailed
from tests.flower.federations import SITES, Federation, assert_equal, start


def trail(folder: Path, site: str) -> list[AuditLine]:
    lines, fault = read_chain(folder / "sites" / site / AUDIT_FILE)
    assert fault is None
    return lines


def test_every_message_has_a_line_with_its_bytes(tmp_path: Path) -> None:
    federation = Federation(tmp_path, val_every=2)
    traffic = federation.loop.evaluate(federation.run()).traffic
    entries = [*(record.communication for record in federation.records), traffic]
    names = tuple(entry.name for entry in sorted(federation.adapted.manifest.federated, key=lambda entry: entry.name))
    for site in SITES:
        lines = trail(tmp_path, site)
        assert [(line.direction, line.message, line.round) for line in lines] == [
            (direction, entry["message"], entry["round"]) for entry in entries for direction in ("in", "out")
        ]
        ways = [entry["sites"][site][way]["bytes_message"] for entry in entries for way in ("down", "up")]
        assert [line.bytes for line in lines] == ways
        assert {line.plan_sha256 for line in lines} == {federation.setups[0].model.agreement()["plan_sha256"]}
        assert {(line.site, line.run_id, line.attempt, line.failure, line.epsilon) for line in lines} == {(site, "run", 1, None, None)}
        assert [line.tensors for line in lines] == [*7 * [names], ()]


def test_the_server_knows_the_heads_and_what_came_with_them(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    known = load_heads(tmp_path / HEADS_FILE)
    assert known.keys() == SITES.keys()
    for site in SITES:
        lines = trail(tmp_path, site)
        assert [point.head for point in known[site]] == [line.head for line in lines if line.direction == "out"]
        assert fault_against(known[site], lines) == (None, 1)
    down = [(message.metadata.dst_node_id, message) for message in federation.grid.sent]
    for node, message in (*down, *((message.metadata.src_node_id, message) for message in federation.grid.received)):
        hashes = {line.payload_sha256: line.bytes for line in trail(tmp_path, federation.setups[node - 1].site)}
        assert hashes[content_sha256(message.content)] == message_bytes(message.content)


def test_the_line_is_on_the_disk_before_the_bytes_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        fsync(descriptor)
        if (path := Path(f"/proc/self/fd/{descriptor}").readlink()).name == AUDIT_FILE:
            synced.append(path.read_bytes().splitlines()[-1])

    monkeypatch.setattr(os, "fsync", noting)
    federation = Federation(tmp_path, {"site_a": 1})
    federation.run()
    heads = [str(message.content.config_records[CONFIG][AUDIT_HEAD]).split(":")[1] for message in federation.grid.received]
    assert [line.rpartition(b'"hash":"')[2][:64].decode() for line in synced[1::2]] == heads


def test_a_continued_run_continues_the_trail(tmp_path: Path) -> None:
    whole = Federation(tmp_path / "whole").run()
    first = Federation(tmp_path / "cut")
    first.run_until(3)
    second = Federation(tmp_path / "cut")
    assert_equal(second.run(rounds_done=2), whole)
    lines = trail(tmp_path / "cut", "site_b")
    assert [line.round for line in lines] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert lines[5].bytes == lines[7].bytes  # the same message again has as many bytes


def test_a_failure_is_in_the_trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, {"site_a": 1})
    shutil.rmtree(federation.setups[0].store_folder)
    with pytest.raises(SiteFailed, match="reports bad_input"):
        federation.run()
    told, answered = trail(tmp_path, "site_a")
    assert (told.failure, answered.failure, answered.tensors) == (None, "bad_input", ())
    assert answered.bytes == message_bytes(federation.grid.received[0].content)


def test_what_cannot_be_written_down_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, {"site_a": 1})
    calls = iter(range(100))

    def broken_disk(descriptor: int) -> None:
        if next(calls) > 1:  # after the first line and its folder comes the answer's line
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken_disk)
    with pytest.raises(SiteFailed, match="site_a reports bad_input"):
        federation.run()
    (reply,) = federation.grid.received
    assert PAYLOAD not in reply.content and set(reply.content.config_records[CONFIG]) == {"site", "failure", "failure_id"}
    assert "nothing may leave this site" in (tmp_path / "sites" / "site_a" / "logs" / "site.log").read_text(encoding="utf-8")


def test_a_site_whose_trail_was_shortened_is_refused_and_the_round_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    federation = Federation(tmp_path)
    path = tmp_path / "sites" / "site_b" / AUDIT_FILE

    def shorten(record: object) -> None:
        federation.records.append(record)  # type: ignore[arg-type]
        if len(federation.records) == 2:
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))

    federation.loop._on_round = shorten
    federation.run()
    refused = [record.progress["refused"] for record in federation.records]
    assert refused[:2] == [{}, {}] and list(refused[2]) == ["site_b"]
    assert "the update of site_b was refused, the round goes on without it: its audit trail was shortened" in caplog.text
    for _ in range(3):  # the trail is longer again than what the server knew: it stays refused, and its scores are not in the result
        scores = federation.loop.evaluate(start(federation.adapted))
        assert list(scores.shared) == ["site_a", "site_c"]
        assert scores.refused.keys() == {"site_b"} and "was shortened" in scores.refused["site_b"]
        assert scores.traffic["sites"].keys() == SITES.keys()
    assert len(trail(tmp_path, "site_b")) > 4


def speak_as(federation: Federation, liar: str, name: str, monkeypatch: pytest.MonkeyPatch, *, first: bool = True) -> None:
    """A site claims another name, with a head that no trail will ever continue, before or after the others answer."""
    pull = federation.grid.pull_messages

    def changed(ids: set[str]) -> list[Message]:
        replies = sorted(pull(ids), key=lambda reply: (reply.content.config_records[CONFIG]["site"] == liar) != first)
        for reply in replies:
            config = reply.content.config_records[CONFIG]
            if config["site"] == liar:
                config["site"], config[AUDIT_HEAD], config[AUDIT_PREVIOUS] = name, str(Head(9_999_999_999, "e" * 64)), str(START)
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", changed)


@pytest.mark.parametrize("first", [False, True])
def test_nobody_can_spoil_the_trail_of_another_site(tmp_path: Path, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = {"site_a": 1, "site_b": 1}
    begun = Federation(tmp_path, sites)
    begun.run_until(2)
    before = (tmp_path / HEADS_FILE).read_bytes()
    spoiled = Federation(tmp_path, sites)
    with monkeypatch.context() as patch:
        speak_as(spoiled, "site_b", "site_a", patch, first=first)
        with pytest.raises(SiteFailed, match="two nodes answer for the same site, site_a"):
            spoiled.run(rounds_done=1)
    assert (tmp_path / HEADS_FILE).read_bytes() == before
    honest = Federation(tmp_path, sites)
    honest.run(rounds_done=1)
    assert [record.progress["refused"] for record in honest.records] == [{}, {}]


@pytest.mark.parametrize("name", ["site_z", "../x", "a\x1b[2Jb", "", "a\nb", "x" * 500])
def test_a_name_that_is_no_site_of_the_run_is_noted_nowhere(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, {"site_a": 1, "site_b": 1})
    speak_as(federation, "site_b", name, monkeypatch)
    with pytest.raises(SiteFailed) as refused:
        federation.run()
    assert str(refused.value).isprintable() and len(str(refused.value)) < 100
    assert not (tmp_path / HEADS_FILE).exists()


def test_who_lacks_the_reference_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Federation(tmp_path)
    first.run_until(3)
    shutil.rmtree(tmp_path / "sites" / "site_b")
    for name, words in (("site_z", "there is no site 'site_z'"), ("site_a", "two nodes answer for the same site, site_a")):
        second = Federation(tmp_path)
        with monkeypatch.context() as patch:
            speak_as(second, "site_b", name, patch)
            with pytest.raises(SiteFailed, match=words):
                second.run(rounds_done=2)
    assert load_heads(tmp_path / HEADS_FILE).keys() == SITES.keys()


@pytest.mark.parametrize("value", [None, "", "0000000002:" + "g" * 64, 7])
def test_a_reply_without_a_head_is_refused(tmp_path: Path, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, {"site_a": 1, "site_b": 1})
    pull = federation.grid.pull_messages

    def without(ids: set[str]) -> list[Message]:
        replies = list(pull(ids))
        for reply in replies:
            config = reply.content.config_records[CONFIG]
            if config["site"] == "site_b":
                if value is None:
                    del config[AUDIT_HEAD]
                else:
                    config[AUDIT_HEAD] = value  # type: ignore[assignment]
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", without)
    federation.run()
    for record in federation.records:
        assert "without the head of the site's audit trail" in record.progress["refused"]["site_b"]


def test_a_joiner_without_its_trail_is_taken_and_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Federation(tmp_path)
    first.run_until(3)
    shutil.rmtree(tmp_path / "sites" / "site_b")
    second = Federation(tmp_path)
    second.run(rounds_done=2)
    assert not second.records[0].progress["refused"]
    assert "the audit trail of site_b begins anew" in caplog.text
    lines = trail(tmp_path, "site_b")
    assert [(line.direction, line.failure) for line in lines] == [
        ("in", None),
        ("out", "reference_missing"),
        ("in", None),
        ("out", None),
    ]
    assert {point.trail for point in load_heads(tmp_path / HEADS_FILE)["site_b"]} == {1, 2}


def test_trails_grow_only(tmp_path: Path) -> None:
    """What a second run in the same folder writes comes after what the first one wrote."""
    Federation(tmp_path).run()
    before = (tmp_path / "sites" / "site_a" / AUDIT_FILE).read_bytes()
    for series in (tmp_path / "sites").glob("*/state_r*"):
        shutil.rmtree(series)
    Federation(tmp_path).run()
    after = (tmp_path / "sites" / "site_a" / AUDIT_FILE).read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    assert all(first.hash == second.previous for first, second in pairwise(trail(tmp_path, "site_a")))
