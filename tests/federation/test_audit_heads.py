"""The server's memory of its sites' trails: it finds what a chain alone cannot, and lets a site that lost its disk come back."""

import os
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_chain import AUDIT_FILE, START, AuditChain, Head, read_chain
from fedsam_pipeline.federation.audit_heads import HEADS_FILE, AuditHeads, TrailBroken, fault_against, load_heads
from tests.federation.test_audit_chain import entry


def reply(site: Path, heads: AuditHeads, number: int, *, arrives: bool = True) -> None:
    """A message to site_a and its answer."""
    chain = AuditChain(site)
    chain.append(entry("in", number))
    head, previous = chain.append(entry("out", number))
    if arrives:
        take(heads, head, previous, number)


def take(heads: AuditHeads, head: Head, previous: Head, number: int) -> None:
    heads.take("site_a", head, previous, message="train.round", payload_sha256=f"{number:064x}")


def known(server: Path) -> list[tuple[int, int]]:
    return [(point.trail, point.length) for point in load_heads(server / HEADS_FILE)["site_a"]]


def test_heads_outlive_the_server(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        reply(tmp_path / "site", AuditHeads(tmp_path), number)
    assert known(tmp_path) == [(1, 2), (1, 4), (1, 6)]
    lines, fault = read_chain(tmp_path / "site" / AUDIT_FILE)
    assert fault is None
    assert fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], lines) is None


def test_lines_cut_off_at_the_end_are_found_by_the_server_only(tmp_path: Path) -> None:
    heads = AuditHeads(tmp_path)
    for number in (1, 2, 3):
        reply(tmp_path / "site", heads, number)
    path = tmp_path / "site" / AUDIT_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    lines, fault = read_chain(path)
    assert fault is None
    found = fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], lines)
    assert found is not None and (found.line, found.found) == (6, "the end after 4 lines")
    with pytest.raises(TrailBroken, match=r"shortened or written anew: it says that its last reply was line 4 .* the server has line 6"):
        reply(tmp_path / "site", heads, 4)
    assert known(tmp_path) == [(1, 2), (1, 4), (1, 6)]


def test_a_trail_that_was_written_anew_is_found(tmp_path: Path) -> None:
    heads, quiet = AuditHeads(tmp_path), AuditHeads(tmp_path / "other")
    for number in (1, 2):
        reply(tmp_path / "site", heads, number)
    os.replace(tmp_path / "site" / AUDIT_FILE, tmp_path / "honest.jsonl")
    for number in (7, 8):
        reply(tmp_path / "site", quiet, number)
    lines, _ = read_chain(tmp_path / "site" / AUDIT_FILE)
    found = fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], lines)
    assert found is not None and found.line == 2 and "which the server has" in found.expected
    with pytest.raises(TrailBroken, match="shortened or written anew"):
        reply(tmp_path / "site", heads, 9)


def test_a_line_that_says_something_else_than_what_came_is_found(tmp_path: Path) -> None:
    heads, chain = AuditHeads(tmp_path), AuditChain(tmp_path / "site")
    chain.append(entry("in"))
    take(heads, *chain.append(entry("out", 1)), number=2)
    lines, _ = read_chain(tmp_path / "site" / AUDIT_FILE)
    found = fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], lines)
    assert found is not None and "which the server received" in found.expected


def test_a_reply_that_got_lost_breaks_nothing(tmp_path: Path) -> None:
    heads = AuditHeads(tmp_path)
    reply(tmp_path / "site", heads, 1)
    reply(tmp_path / "site", heads, 2, arrives=False)
    reply(tmp_path / "site", heads, 3)
    assert known(tmp_path) == [(1, 2), (1, 6)]


def test_a_trail_older_than_the_run_is_taken(tmp_path: Path) -> None:
    reply(tmp_path / "site", AuditHeads(tmp_path / "earlier"), 1)
    reply(tmp_path / "site", AuditHeads(tmp_path), 2)
    assert known(tmp_path) == [(1, 4)]


def test_a_site_that_lost_its_disk_comes_back_and_it_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heads = AuditHeads(tmp_path)
    for number in (1, 2):
        reply(tmp_path / "site", heads, number)
    for number in (3, 4):
        reply(tmp_path / "new disk", heads, number)
    assert "the audit trail of site_a begins anew: the server last knew line 4" in caplog.text
    assert known(tmp_path) == [(1, 2), (1, 4), (2, 2), (2, 4)]
    points = load_heads(tmp_path / HEADS_FILE)["site_a"]
    for folder in ("site", "new disk"):
        assert fault_against(points, read_chain(tmp_path / folder / AUDIT_FILE)[0]) is None


def test_a_reply_that_comes_again_is_refused(tmp_path: Path) -> None:
    heads, chain = AuditHeads(tmp_path), AuditChain(tmp_path / "site")
    first = chain.append(entry("out", 1))
    second = chain.append(entry("out", 2))
    take(heads, *first, number=1)
    take(heads, *second, number=2)
    for again in (first, second):
        with pytest.raises(TrailBroken, match="does not grow"):
            take(heads, *again, number=1)
    with pytest.raises(TrailBroken, match="does not grow"):
        take(heads, START, second[0], number=3)


def test_broken_heads_stop_the_server(tmp_path: Path) -> None:
    (tmp_path / HEADS_FILE).write_text("{")
    with pytest.raises(FedsamError, match=r"cannot be read as JSON[\s\S]*last good copy"):
        AuditHeads(tmp_path)
