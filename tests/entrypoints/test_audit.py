"""``fedsam_audit``: exit code and words of both actions, on files as a site and a server write them."""

import json
from pathlib import Path

import pytest

from fedsam_pipeline.entrypoints.audit import main
from fedsam_pipeline.federation.audit_chain import AUDIT_FILE, AuditChain
from fedsam_pipeline.federation.audit_heads import HEADS_FILE, AuditHeads
from tests.federation.test_audit_chain import entry


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with two sites, as simulation leaves it."""
    heads = AuditHeads(tmp_path)
    for site in ("site_a", "site_b"):
        chain = AuditChain(tmp_path / "sites" / site)
        for number in (1, 2):
            chain.append(entry("in", number, site=site))
            head, previous = chain.append(entry("out", number, site=site, failure="bad_input" if number == 2 else None))
            heads.take(site, head, previous, message="train.round", payload_sha256=f"{number:064x}")
            heads.keep()
    return tmp_path


def lines_of(run: Path, site: str) -> list[bytes]:
    return (run / "sites" / site / AUDIT_FILE).read_bytes().splitlines(keepends=True)


def test_intact_trails(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("intact, 4 lines, as the server has it (trail 1 of 1, 2 replies), head 0000000004:") == 2
    for place in (run / "sites" / "site_a", run / "sites" / "site_a" / AUDIT_FILE):
        assert main(["verify", str(place)]) == 0
        assert "intact, 4 lines, head 0000000004:" in capsys.readouterr().out
        assert main(["verify", str(place), "--heads", str(run / HEADS_FILE)]) == 0
        assert "as the server has it" in capsys.readouterr().out


def test_an_edited_line_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "sites" / "site_b" / AUDIT_FILE
    path.write_bytes(path.read_bytes().replace(b'"bytes":102', b'"bytes":1', 1))
    assert main(["verify", str(run)]) == 2
    printed = capsys.readouterr().out
    assert "site_a/audit.jsonl: intact" in printed
    assert "site_b/audit.jsonl: BROKEN\n  line:     3\n  found:    hash " in printed
    assert "the line was edited" in printed
    assert main(["show", str(path)]) == 2
    assert "an audit trail is broken" in capsys.readouterr().err


def test_a_shortened_trail_is_found_with_the_servers_heads(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "sites" / "site_b" / AUDIT_FILE
    path.write_bytes(b"".join(lines_of(run, "site_b")[:3]))
    assert main(["verify", str(path)]) == 0
    assert main(["verify", str(path), "--heads", str(run / HEADS_FILE)]) == 2
    assert "found:    the end after 3 lines" in capsys.readouterr().out
    assert main(["verify", str(run)]) == 2


def test_a_trail_that_is_gone_is_found_in_the_runs_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "sites" / "site_b" / AUDIT_FILE).unlink()
    assert main(["verify", str(run)]) == 2
    assert "site_b: MISSING: trail 1 of 1, 2 replies\n" in capsys.readouterr().out
    assert main(["verify", str(run / "sites" / "site_a"), "--heads", str(run / HEADS_FILE)]) == 0  # of this site alone


def test_a_trail_that_was_thrown_away_is_missing_until_it_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "sites" / "site_b" / AUDIT_FILE
    old = path.rename(path.with_name("before_the_crash.jsonl"))
    head, previous = AuditChain(path.parent).append(entry("out", 3, site="site_b"))
    heads = AuditHeads(run)
    heads.take("site_b", head, previous, message="train.round", payload_sha256=f"{3:064x}")
    heads.keep()
    for arguments in ([str(run)], [str(path), "--heads", str(run / HEADS_FILE)]):
        assert main(["verify", *arguments]) == 2
        printed = capsys.readouterr().out
        assert "site_b/audit.jsonl: intact, 1 lines, as the server has it (trail 2 of 2, 1 reply), head" in printed
        assert "site_b: MISSING: trail 1 of 2, 2 replies\n" in printed
        assert main(["verify", str(old), *arguments]) == 0
        assert "before_the_crash.jsonl: intact, 4 lines, as the server has it (trail 1 of 2, 2 replies)" in capsys.readouterr().out
    assert main(["verify", str(old), "--heads", str(run / HEADS_FILE)]) == 2
    assert "site_b: MISSING: trail 2 of 2, 1 reply\n" in capsys.readouterr().out
    path.write_bytes(path.read_bytes().replace(b'"bytes":103', b'"bytes":1'))
    assert main(["verify", str(run)]) == 2
    printed = capsys.readouterr().out
    assert "site_b/audit.jsonl: BROKEN" in printed and printed.count("MISSING") == 1, "the broken file is trail 2"


def test_another_sites_trail_in_its_place_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "sites" / "site_b" / AUDIT_FILE).write_bytes(b"".join(lines_of(run, "site_a")))
    assert main(["verify", str(run)]) == 2


def test_the_table_has_a_row_a_message(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run), "--last", "3"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == "line time (UTC) site way message round tensors bytes sha256 plan epsilon note"
    assert [(row.split()[0], *row.split()[3:10]) for row in rows[:3]] == [
        ("2", "site_a", "out", "train.round", "1", "2", "101", "0" * 12),
        ("3", "site_a", "in", "train.round", "2", "2", "102", "0" * 12),
        ("4", "site_a", "out", "train.round", "2", "2", "102", "0" * 12),
    ]
    assert rows[2].endswith("failure bad_input") and len(rows) == 6


def test_json_has_everything(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run / "sites" / "site_a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [json.loads(line) for line in lines_of(run, "site_a")]


def test_what_the_server_chose_cannot_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = AuditChain(tmp_path)
    for text in ("\x1b]0;owned\x07", "a\nb", "\u202eabc", "\x9b31m"):
        chain.append(entry("in", message=text, run_id=text, plan_sha256=text, tensors=(text,)))
    chain.append(entry("out", failure="\x1b[2J"))
    for arguments in (["show", str(tmp_path)], ["show", str(tmp_path), "--json"], ["verify", str(tmp_path)]):
        assert main(arguments) == 0
        assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))
    with open(tmp_path / AUDIT_FILE, "ab") as stream:
        stream.write(b'{"\\u001b[2J": 1}\n')
    assert main(["verify", str(tmp_path)]) == 2
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "{run}/nothing"], "there is no audit trail here"),
        (["show", "{run}/nothing"], "there is no audit trail here"),
        (["verify", "{run}", "--heads", "{run}/nothing.jsonl"], "the heads of audit trails cannot be read"),
        (["verify", "{run}", "--heads", "{other}"], "the server's heads know nothing of this site"),
    ],
)
def test_what_is_not_there_is_named(run: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = run / "other.jsonl"
    other.touch()
    assert main([argument.format(run=run, other=other) for argument in arguments]) == 2
    assert words in capsys.readouterr().err
