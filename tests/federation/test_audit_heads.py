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
    try:
        heads.take("site_a", head, previous, message="train.round", payload_sha256=f"{number:064x}")
    finally:
        heads.keep()


def known(server: Path) -> list[tuple[int, int]]:
    return [(point.trail, point.length) for point in load_heads(server / HEADS_FILE)["site_a"]]


def test_heads_outlive_the_server(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        reply(tmp_path / "site", AuditHeads(tmp_path), number)
    assert known(tmp_path) == [(1, 2), (1, 4), (1, 6)]
    lines, fault = read_chain(tmp_path / "site" / AUDIT_FILE)
    assert fault is None
    assert fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], lines) == (None, 1)


def test_lines_cut_off_at_the_end_are_found_by_the_server_only(tmp_path: Path) -> None:
    heads = AuditHeads(tmp_path)
    for number in (1, 2, 3):
        reply(tmp_path / "site", heads, number)
    path = tmp_path / "site" / AUDIT_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    lines, fault = read_chain(path)
    assert fault is None
    found, _ = fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], lines)
    assert found is not None and (found.line, found.found) == (6, "the end after 4 lines")
    with pytest.raises(TrailBroken, match=r"shortened or written anew: it says that its last reply was line 4 .* the server has line 6"):
        reply(tmp_path / "site", heads, 4)
    assert known(tmp_path) == [(1, 2), (1, 4), (1, 6)]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_shortened_trail_stays_refused_when_it_is_longer_again(tmp_path: Path, restarted: bool) -> None:
    heads = AuditHeads(tmp_path)
    for number in (1, 2, 3, 4):
        reply(tmp_path / "site", heads, number)
    path = tmp_path / "site" / AUDIT_FILE
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    for number in range(5, 12):  # the seventh reply is line 16
        with pytest.raises(TrailBroken, match="the server has line 8"):
            reply(tmp_path / "site", AuditHeads(tmp_path) if restarted else heads, number)
    assert known(tmp_path) == [(1, 2), (1, 4), (1, 6), (1, 8)]
    path.write_bytes(whole)  # the good copy is back
    reply(tmp_path / "site", AuditHeads(tmp_path), 12)
    assert known(tmp_path)[-1] == (1, 10)


def test_a_site_that_was_refused_may_begin_anew(tmp_path: Path) -> None:
    heads = AuditHeads(tmp_path)
    for number in (1, 2):
        reply(tmp_path / "site", heads, number)
    path = tmp_path / "site" / AUDIT_FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(TrailBroken):
        reply(tmp_path / "site", heads, 3)
    for number in (4, 5):
        reply(tmp_path / "new disk", heads, number)
    assert known(tmp_path) == [(1, 2), (1, 4), (2, 2), (2, 4)]


def test_a_longer_rewrite_is_taken_with_a_warning_and_found_in_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heads, quiet = AuditHeads(tmp_path), AuditHeads(tmp_path / "other")
    reply(tmp_path / "site", heads, 1)
    for number in (7, 8):
        reply(tmp_path / "rewritten", quiet, number)
    reply(tmp_path / "rewritten", heads, 9)
    assert "site_a says that it replied between lines 2 and 6 of its audit trail; the server has no such reply" in caplog.text
    found, trail = fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], read_chain(tmp_path / "rewritten" / AUDIT_FILE)[0])
    assert found is not None and (found.line, trail) == (2, 1)


def test_a_trail_that_was_written_anew_is_found(tmp_path: Path) -> None:
    heads, quiet = AuditHeads(tmp_path), AuditHeads(tmp_path / "other")
    for number in (1, 2):
        reply(tmp_path / "site", heads, number)
    os.replace(tmp_path / "site" / AUDIT_FILE, tmp_path / "honest.jsonl")
    for number in (7, 8):
        reply(tmp_path / "site", quiet, number)
    lines, _ = read_chain(tmp_path / "site" / AUDIT_FILE)
    found, _ = fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], lines)
    assert found is not None and found.line == 2 and "which the server has" in found.expected
    with pytest.raises(TrailBroken, match="shortened or written anew"):
        reply(tmp_path / "site", heads, 9)


def test_a_line_that_says_something_else_than_what_came_is_found(tmp_path: Path) -> None:
    heads, chain = AuditHeads(tmp_path), AuditChain(tmp_path / "site")
    chain.append(entry("in"))
    take(heads, *chain.append(entry("out", 1)), number=2)
    lines, _ = read_chain(tmp_path / "site" / AUDIT_FILE)
    found, _ = fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], lines)
    assert found is not None and "which the server received" in found.expected


def test_another_reply_before_it_than_the_site_said_is_found(tmp_path: Path) -> None:
    heads, chain = AuditHeads(tmp_path), AuditChain(tmp_path / "site")
    chain.append(entry("out", 1))
    chain.append(entry("out", 2))
    head, _ = chain.append(entry("out", 3))
    take(heads, head, read_chain(tmp_path / "site" / AUDIT_FILE)[0][0].head, 3)
    found, _ = fault_against(load_heads(tmp_path / HEADS_FILE)["site_a"], read_chain(tmp_path / "site" / AUDIT_FILE)[0])
    assert found is not None and found.line == 3 and "which it said itself" in found.expected


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
    for trail, folder in enumerate(("site", "new disk"), start=1):
        assert fault_against(points, read_chain(tmp_path / folder / AUDIT_FILE)[0]) == (None, trail)


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


def test_what_came_in_a_contested_name_is_void(tmp_path: Path) -> None:
    """Whoever claims the name first: what is written down can poison no later reply."""
    reply(tmp_path / "site", AuditHeads(tmp_path), 1)
    heads = AuditHeads(tmp_path)
    assert heads.claim("site_a", 2)
    heads.take("site_a", Head(9_999_999_999, "e" * 64), START, message="train.round", payload_sha256="0" * 64)
    assert not heads.claim("site_a", 1)
    heads.keep()
    assert known(tmp_path) == [(1, 2)]
    reply(tmp_path / "site", heads, 2)
    assert known(tmp_path) == [(1, 2), (1, 4)]


def test_a_node_speaks_for_one_site(tmp_path: Path) -> None:
    heads = AuditHeads(tmp_path)
    assert heads.claim("site_b", 2) and heads.claim("site_b", 2)
    assert not heads.claim("site_a", 2)
    assert heads.claim("site_a", 1), "a liar keeps nobody else from answering"
    heads.take("site_a", Head(2, "e" * 64), START, message="train.round", payload_sha256="0" * 64)
    assert not heads.claim("site_a", 2)
    heads.keep()
    assert known(tmp_path) == [(1, 2)], "who is known to be another makes nothing void"


def test_nothing_is_written_before_it_is_kept(tmp_path: Path) -> None:
    heads = AuditHeads(tmp_path)
    heads.take("site_a", Head(2, "e" * 64), START, message="train.round", payload_sha256="0" * 64)
    assert not (tmp_path / HEADS_FILE).exists()


def test_a_reply_adds_to_the_file_and_rewrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noting)
    heads, path, before = AuditHeads(tmp_path), tmp_path / HEADS_FILE, b""
    reply(tmp_path / "site", heads, 1)
    file = path.stat().st_ino
    for number in range(2, 20):
        synced.clear()
        before = path.read_bytes()
        reply(tmp_path / "site", heads, number)
        after = path.read_bytes()
        assert after.startswith(before) and len(after) - len(before) < 500
        assert path.stat().st_ino == file and file in synced


def test_a_torn_line_is_set_aside_and_what_came_before_is_held_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reply(tmp_path / "site", AuditHeads(tmp_path), 1)
    with open(tmp_path / HEADS_FILE, "ab") as stream:
        stream.write(b'{"site":"site_a","tra')
    assert known(tmp_path) == [(1, 2)]
    reply(tmp_path / "site", AuditHeads(tmp_path), 2)
    assert known(tmp_path) == [(1, 2), (1, 4)]
    (aside,) = tmp_path.glob("audit_heads_torn_line_2_*.jsonl")
    assert aside.read_bytes() == b'{"site":"site_a","tra' and aside.name in caplog.text


@pytest.mark.parametrize(("line", "words"), [("{", "is no JSON"), ("{}", "not a valid HeadPoint"), ("[" * 100_000, "is no JSON")])
def test_broken_heads_stop_the_server(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / HEADS_FILE).write_text(line + "\n")
    with pytest.raises(FedsamError, match=rf"{words}[\s\S]*line 1[\s\S]*last good copy"):
        AuditHeads(tmp_path)


def test_heads_that_cannot_be_written_or_read_are_named(tmp_path: Path) -> None:
    heads = AuditHeads(tmp_path)
    (tmp_path / HEADS_FILE).mkdir()
    with pytest.raises(FedsamError, match=r"cannot be written[\s\S]*audit_heads.jsonl"):
        reply(tmp_path / "site", heads, 1)
    with pytest.raises(FedsamError, match="cannot be read"):
        load_heads(tmp_path / HEADS_FILE)
    with pytest.raises(FedsamError, match=r"cannot be read[\s\S]*run folder"):
        load_heads(tmp_path / "nothing.jsonl")
