"""The trail's chain: whatever is done to a line is found, a power cut is not a crime, several processes share a file."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_chain import (
    AUDIT_FILE,
    MAX_LINE,
    MAX_NAMES,
    NO_HASH,
    START,
    AuditChain,
    AuditEntry,
    Head,
    NameDigest,
    listed,
    read_chain,
)
from fedsam_pipeline.specs.canonical import canonical_json, sha256_of

SHORT_OF_ROOM = """
import resource, sys
from pathlib import Path
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_chain import AuditChain
from tests.federation.test_audit_chain import entry

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    AuditChain(Path(sys.argv[1])).append(entry("in", 2))
except FedsamError as error:
    print(error)
"""


def entry(direction: str = "in", number: int = 1, **changes: object) -> AuditEntry:
    values = {
        "site": "site_a",
        "direction": direction,
        "message": "train.round",
        "run_id": "run",
        "round": number,
        "attempt": 1,
        "plan_sha256": "1" * 64,
        "tensors": ("a", "b"),
        "bytes": 100 + number,
        "payload_sha256": f"{number:064x}",
        "failure": None,
        "epsilon": None,
    }
    return AuditEntry.model_validate(values | changes)


def written(folder: Path, messages: int = 3) -> Path:
    """A trail of so many messages and their answers."""
    chain = AuditChain(folder)
    for number in range(1, messages + 1):
        chain.append(entry("in", number))
        chain.append(entry("out", number))
    return folder / AUDIT_FILE


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("trail")).read_bytes()


def test_a_trail_tells_what_it_was_told_in_order(tmp_path: Path) -> None:
    lines, fault = read_chain(written(tmp_path))
    assert fault is None
    assert [(line.index, line.direction, line.round, line.bytes) for line in lines] == [
        (1, "in", 1, 101),
        (2, "out", 1, 101),
        (3, "in", 2, 102),
        (4, "out", 2, 102),
        (5, "in", 3, 103),
        (6, "out", 3, 103),
    ]
    assert [line.previous for line in lines] == [NO_HASH, *(line.hash for line in lines[:-1])]


def test_anyone_can_compute_a_lines_hash(tmp_path: Path) -> None:
    for raw in written(tmp_path).read_text(encoding="utf-8").splitlines():
        values = json.loads(raw)
        claimed = values.pop("hash")
        assert claimed == sha256_of(values)
        assert raw == canonical_json(values | {"hash": claimed})


def test_appending_gives_the_head_and_the_one_of_the_last_reply(tmp_path: Path) -> None:
    chain = AuditChain(tmp_path)
    _, replied = chain.append(entry("in"))
    assert replied == START
    first, replied = chain.append(entry("out"))
    assert (first.length, replied) == (2, START)
    chain.append(entry("in", 2))  # never answered: the process was killed
    chain.append(entry("in", 2))
    second, replied = AuditChain(tmp_path).append(entry("out", 2))
    assert second.length == 5 and replied == first


def test_the_last_reply_is_found_behind_many_long_lines(tmp_path: Path) -> None:
    chain = AuditChain(tmp_path)
    reply, _ = chain.append(entry("out"))
    for number in range(8):
        chain.append(entry("in", number, tensors=tuple(f"{'x' * 100}{i:03d}" for i in range(300))))
    head, replied = chain.append(entry("out", 9))
    assert (head.length, replied) == (10, reply)


@given(position=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_is_found(whole: bytes, position: float, change: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    at = int(position * len(whole))
    changed = whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :]
    _, fault = read_chain(rewritten(tmp_path_factory, changed))
    assert fault is not None and fault.line == 1 + whole[:at].count(b"\n")


@given(data=st.data())
def test_lines_taken_out_doubled_or_swapped_are_found(whole: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = whole.splitlines(keepends=True)
    indices = st.integers(0, len(lines) - 1)
    at = data.draw(indices)
    match data.draw(st.sampled_from(["take out", "double", "swap"])):
        case "take out":
            at = min(at, len(lines) - 2)  # the last one is the server's to find
            changed = lines[:at] + lines[at + 1 :]
        case "double":
            changed = lines[: at + 1] + lines[data.draw(st.integers(0, at)) :]
        case _:
            other = data.draw(indices.filter(lambda each: each != at))
            changed = list(lines)
            changed[at], changed[other] = changed[other], changed[at]
    _, fault = read_chain(rewritten(tmp_path_factory, b"".join(changed)))
    assert fault is not None


@given(position=st.floats(0, 1, exclude_max=True))
def test_a_cut_is_found_unless_it_is_between_lines(whole: bytes, position: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    cut = whole[: int(position * len(whole))]
    lines, fault = read_chain(rewritten(tmp_path_factory, cut))
    assert (fault is None) == (not cut or cut.endswith(b"\n"))
    assert len(lines) == cut.count(b"\n")


@given(key=st.sampled_from(["bytes", "round", "tensors", "time", "epsilon", "site"]), at=st.integers(0, 5))
def test_an_edit_with_a_fresh_hash_breaks_the_next_line(whole: bytes, key: str, at: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Who computes the hash anew has to write all later lines anew: then the server's head finds it."""
    lines = whole.splitlines()
    values = json.loads(lines[at])
    values[key] = {"bytes": 7, "round": 7, "tensors": [], "time": "2020-01-01T00:00:00.000+00:00", "epsilon": 0.5, "site": "x"}[key]
    del values["hash"]
    lines[at] = canonical_json(values | {"hash": sha256_of(values)}).encode()
    _, fault = read_chain(rewritten(tmp_path_factory, b"\n".join(lines) + b"\n"))
    assert fault is None if at == 5 else fault is not None and fault.line == at + 2


@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_without_a_crash(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines, fault = read_chain(rewritten(tmp_path_factory, content))
    assert not lines and (fault is not None) == bool(content)


def rewritten(factory: pytest.TempPathFactory, content: bytes) -> Path:
    path = factory.getbasetemp() / "changed.jsonl"
    path.write_bytes(content)
    return path


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / AUDIT_FILE
    with open(path, "wb") as stream:
        stream.truncate(1 << 40)  # a sparse file: no disk holds so much
    _, fault = read_chain(path)
    assert fault is not None and fault.found == f"more than {MAX_LINE} bytes"


@pytest.mark.parametrize("left", [b'{"attempt":1,"byt', b"\0" * 100, b"x"])
def test_a_torn_line_is_set_aside_and_the_chain_goes_on(tmp_path: Path, left: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, messages=1)
    with open(path, "ab") as stream:
        stream.write(left)
    _, fault = read_chain(path)
    assert fault is not None and fault.line == 3 and "power cut" in fault.expected
    head, _ = AuditChain(tmp_path).append(entry("in", 2))
    assert head.length == 3
    lines, fault = read_chain(path)
    assert fault is None and len(lines) == 3
    (aside,) = tmp_path.glob("audit_torn_line_3_*.jsonl")
    assert aside.read_bytes() == left
    assert aside.name in caplog.text


def test_a_whole_line_without_its_end_never_left(tmp_path: Path) -> None:
    path = written(tmp_path, messages=1)
    os.truncate(path, path.stat().st_size - 1)
    head, replied = AuditChain(tmp_path).append(entry("in", 2))
    assert (head.length, replied) == (2, START)


def test_nothing_is_added_to_a_trail_whose_end_was_edited(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes().replace(b'"bytes":103', b'"bytes":104')
    path.write_bytes(content)
    with pytest.raises(FedsamError, match=r"the audit trail is broken[\s\S]*the line was edited[\s\S]*fedsam_audit verify"):
        AuditChain(tmp_path).append(entry())
    assert path.read_bytes() == content


def test_a_trail_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / AUDIT_FILE).mkdir()
    with pytest.raises(FedsamError, match=r"cannot be written, so nothing may leave this site[\s\S]*audit.jsonl"):
        AuditChain(tmp_path).append(entry())
    with pytest.raises(FedsamError, match="an audit trail cannot be read"):
        read_chain(tmp_path / AUDIT_FILE)


def test_writers_beside_each_other_make_one_chain(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        heads = list(pool.map(lambda number: AuditChain(tmp_path).append(entry("in", number))[0].length, range(20)))
    lines, fault = read_chain(tmp_path / AUDIT_FILE)
    assert fault is None and len(lines) == 20
    assert sorted(heads) == list(range(1, 21))


def test_a_long_list_of_names_is_a_number_and_a_hash() -> None:
    assert listed(["b", "a"]) == ("a", "b")
    many = [f"t{number}" for number in range(MAX_NAMES + 1)]
    assert listed(many) == NameDigest(count=MAX_NAMES + 1, names_sha256=sha256_of(sorted(many)))
    assert isinstance(listed(["x" * 1000]), NameDigest)


@pytest.mark.parametrize("letter", ["\x01", "x", "\U0001f600", '"'])
def test_no_list_of_names_makes_a_line_that_no_reader_takes(tmp_path: Path, letter: str) -> None:
    names = [f"{letter * 190}{number:04d}" for number in range(MAX_NAMES)]
    AuditChain(tmp_path).append(entry("in", tensors=listed(names)))
    head, _ = AuditChain(tmp_path).append(entry("out"))
    lines, fault = read_chain(tmp_path / AUDIT_FILE)
    assert fault is None and lines[-1].head == head


def test_a_line_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    before = written(tmp_path).read_bytes()
    with pytest.raises(FedsamError, match=r"cannot be noted in the audit trail[\s\S]*a line of \d+ bytes"):
        AuditChain(tmp_path).append(entry(run_id="x" * MAX_LINE))
    assert (tmp_path / AUDIT_FILE).read_bytes() == before


def test_a_full_disk_leaves_a_piece_and_the_chain_goes_on(tmp_path: Path) -> None:
    """A process that may write 100 bytes more to a file: the kernel writes these and refuses the rest, as a full disk does."""
    path = written(tmp_path, messages=1)
    size = path.stat().st_size
    found = subprocess.run([sys.executable, "-c", SHORT_OF_ROOM, str(tmp_path), str(size + 100)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "nothing may leave this site" in found.stdout
    assert path.stat().st_size == size + 100
    head, replied = AuditChain(tmp_path).append(entry("in", 2))
    assert (head.length, replied.length) == (3, 2)
    (aside,) = tmp_path.glob("audit_torn_line_3_*.jsonl")
    assert aside.stat().st_size == 100


def test_a_torn_piece_is_on_the_disk_before_it_is_gone_from_the_trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, messages=1)
    with open(path, "ab") as stream:
        stream.write(b"torn")
    size, fsync = path.stat().st_size, os.fsync
    synced: list[tuple[str, bool]] = []

    def noting(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, path.stat().st_size == size))

    monkeypatch.setattr(os, "fsync", noting)
    AuditChain(tmp_path).append(entry("in", 2))
    (piece, whole), (folder, still_whole), *_ = synced
    assert "torn_line_3" in piece and whole
    assert folder == tmp_path.name and still_whole


@given(st.integers(0, 10**10 - 1), st.binary(min_size=32, max_size=32))
def test_a_head_as_text_has_one_size(length: int, digest: bytes) -> None:
    head = Head(length, digest.hex())
    assert len(str(head)) == 75
    assert Head.parse(str(head)) == head


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "x" * 75,
        f"7:{'a' * 64}",
        *(f"{'٧' * 10}:{'a' * 64}", f"{-7:010d}:{'a' * 64}"),
        *(f"{7:010d}:{each * 64}" for each in "gA é"),
    ],
)
def test_other_text_is_no_head(text: str) -> None:
    with pytest.raises(ValueError, match="no head of an audit trail"):
        Head.parse(text)
