"""Records from another machine: what is no array of bytes is refused, whatever its bytes are, and nothing in them is run."""

import io
import pickle
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.flower.messages import CONFIG, PAYLOAD, from_arrays, from_record, to_record
from fedsam_pipeline.flower.replies import SiteFailed
from tests.flower.federations import Federation
from tests.mutations import mutated_bytes


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.folder,)


def numpy_file(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def described(shape: str, dtype: str = "'|u1'") -> bytes:
    return numpy_file(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n", b"12345678")


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.npy", described("(8,)"))
    return stream.getvalue()


HOSTILE = {
    "nothing": b"",
    "text": b"not an array",
    "pickle protocol 0": b"cos\nsystem\n(S'true'\ntR.",
    "magic alone": b"\x93NUMPY",
    "unknown version": b"\x93NUMPY\x09\x00\x10\x00" + 16 * b" ",
    "header cut": b"\x93NUMPY\x01\x00\xff\xff{",
    "header too long": numpy_file(20_000 * " "),
    "header of nulls": numpy_file(40 * "\0"),
    "header is code": numpy_file("__import__('os').getcwd()\n"),
    "header never ends": numpy_file("{'descr': (((\n"),
    "header nests": numpy_file(9_000 * "-" + "1\n"),
    "header nests brackets": numpy_file(150 * "[" + 150 * "]" + "\n"),
    "data cut": described("(9,)"),
    "more than any memory": described(f"({10**18},)"),
    "more than any index": described(f"({10**30},)"),
    "negative": described("(-1,)"),
    "too many axes": described(f"({100 * '1,'})"),
    "bad type": described("(8,)", "'|q99'"),
    "damaged archive": b"PK\x03\x04" + 40 * b"x",
    "archive": archive(),
    "more than the message": described(f"({1 << 36},)"),
    "nothing, many times": described(f"({1 << 60},)", "'|V0'"),
    "letters": described("(1,)", "'<U2'"),
    "another type": described("(1,)", "'<f8'"),
    "another shape": described("(2, 4)"),
    "no axis": described("()"),
}


def record(data: bytes, stype: str = "numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({PAYLOAD: Array(dtype="uint8", shape=(8,), stype=stype, data=data)})


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UpdateRefused):
        from_record(record(data))


@pytest.mark.parametrize("key", ["more than the message", "nothing, many times", "more than any memory", "letters"])
def test_nothing_is_allocated_that_did_not_come(key: str) -> None:
    tracemalloc.start()
    try:
        for read in (from_record, from_arrays):
            with pytest.raises(UpdateRefused):
                read(record(HOSTILE[key]))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=100)
@given(data=st.data())
def test_changed_bytes_of_an_array_are_refused_or_read(data: st.DataObject) -> None:
    changed = data.draw(mutated_bytes(described("(8,)")))
    with suppress(UpdateRefused):
        assert len(from_record(record(changed))) <= len(changed)
    with suppress(UpdateRefused):
        assert all(array.nbytes <= len(changed) for array in from_arrays(record(changed)).values())


def test_another_serialization_is_refused() -> None:
    with pytest.raises(UpdateRefused, match=r"'payload' cannot be read \(TypeError\)"):
        from_record(record(described("(8,)"), "torch.tensor"))


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "made")
    in_array = io.BytesIO()
    np.save(in_array, np.array([trap], dtype=object), allow_pickle=True)
    for data in (pickle.dumps(trap), in_array.getvalue()):
        assert b"mkdir" in data
        with pytest.raises(UpdateRefused, match="ValueError"):
            from_record(record(data))
        with pytest.raises(UpdateRefused, match="ValueError"):
            from_arrays(record(data))
    assert not (tmp_path / "made").exists()


def test_bytes_come_back_and_other_records_are_refused() -> None:
    assert from_record(to_record(b"12345678")) == from_record(record(described("(8,)"))) == b"12345678"
    whole = to_record(b"1")[PAYLOAD]
    for other in ({}, {"other": whole}, {PAYLOAD: whole, "other": whole}):
        with pytest.raises(UpdateRefused, match=f"a record of {len(other)} arrays"):
            from_record(ArrayRecord(other))


@pytest.mark.parametrize("data", [HOSTILE["nothing"], HOSTILE["more than any memory"], HOSTILE["archive"]])
def test_a_round_goes_on_without_the_site(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    federation = Federation(tmp_path)
    pull = federation.grid.pull_messages

    def hostile(ids: set[str]) -> list[Message]:
        replies = list(pull(ids))
        reply = next(reply for reply in replies if reply.content.config_records[CONFIG]["site"] == "site_b")
        reply.content[PAYLOAD] = record(data)
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", hostile)
    federation.run()
    assert [list(line.progress["refused"]) for line in federation.records] == 3 * [["site_b"]]
    reason = federation.records[0].progress["refused"]["site_b"]
    assert "'payload'" in reason
    assert f"the update of site_b was refused, the round goes on without it: {reason}" in caplog.text


def test_a_site_refuses_hostile_bytes_of_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path)
    push = federation.grid.push_messages

    def hostile(messages: list[Message]) -> object:
        for message in messages:
            message.content[PAYLOAD] = record(HOSTILE["nothing"])
        return push(messages)

    monkeypatch.setattr(federation.grid, "push_messages", hostile)
    with pytest.raises(SiteFailed, match="reports update_refused"):
        federation.run()
