"""The codec: exact or within its stated bound for any tensor, the same state on both sides, and no trust in what arrives."""

import json
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedsam_pipeline.federation.codec.coding import Encoded, ReferenceMissing, decode, encode
from fedsam_pipeline.federation.codec.downlink import Downlink
from fedsam_pipeline.federation.codec.payload import Header, pack, state_digest, told_names, unpack
from fedsam_pipeline.federation.codec.wires import WIRES, body_size, to_bytes
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry, Wire
from tests.mutations import changed_once

State = dict[str, torch.Tensor]
LARGEST = float(np.finfo(np.float32).max)
SHAPES = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


def values(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Finite float32 arrays: denormals, both zeros, the largest, ordinary ones."""
    number = st.one_of(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.floats(-(2.0**-126), 2.0**-126, width=32),
        st.floats(-1, 1, width=32),
        st.sampled_from([0.0, -0.0, LARGEST, -LARGEST, 2.0**-149]),
    )
    return arrays(np.float32, shape, elements=number)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[State, State, State]:
    """A state, a reference and a residual of one to three tensors of any shape."""
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=3))
    return tuple({f"t{i}": torch.from_numpy(draw(values(shape))) for i, shape in enumerate(shapes)} for _ in range(3))  # type: ignore[return-value]


def manifest_of(state: Mapping[str, torch.Tensor]) -> Manifest:
    entries = (TensorEntry(name=name, shape=tuple(tensor.shape), dtype="float32", travels="both") for name, tensor in state.items())
    return Manifest(recipe="r", base_model="b", tensors=tuple(entries))


def bits(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def exchanged(state: State, reference: State | None, wire: Wire, residual: State) -> Encoded:
    """Encodes, and checks that the receiver ends with the state that the sender thinks it does."""
    encoded = encode(state, reference, wire, residual)
    received = decode(encoded.payload, reference, manifest_of(state))
    assert bits(received) == bits(encoded.decoded)
    assert encode(state, reference, wire, residual).payload == encoded.payload
    assert encoded.figures.bytes_after == len(encoded.payload)
    assert encoded.figures.bytes_before == 4 * sum(tensor.numel() for tensor in state.values())
    return encoded


@given(exchanges(), st.booleans())
def test_fp32_is_exact_bit_for_bit(exchange: tuple[State, State, State], full: bool) -> None:
    state, reference, _ = exchange
    encoded = exchanged(state, None if full else reference, "fp32", {})
    assert bits(encoded.decoded) == bits(state)
    assert encoded.residual == {}


def rounding(target: np.ndarray) -> np.ndarray:
    """Of a sum to float32."""
    return np.asarray(np.abs(target) * 2.0**-24 + 2.0**-150)


def rows_of(array: np.ndarray) -> np.ndarray:
    """As the documentation says: the first axis, or, of a tall matrix, its columns."""
    if array.ndim < 2:
        return array.reshape(1, array.size)
    matrix: np.ndarray = array.reshape(array.shape[0], int(np.prod(array.shape[1:])))
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def checked_errors(exchange: tuple[State, State, State], wire: Wire) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each tensor: absolute error, difference that was sent, and what rounding to float32 may add. A target that float32 cannot hold
    is cut at its largest number."""
    state, reference, residual = exchange
    encoded = exchanged(state, reference, wire, residual)
    found = []
    for name, tensor in state.items():
        target = tensor.numpy().astype(np.float64) + residual[name].numpy()
        reached = encoded.decoded[name].numpy().astype(np.float64)
        error = np.abs(np.clip(target, -LARGEST, LARGEST) - reached)
        lost = encoded.residual[name].numpy()
        np.testing.assert_array_equal(lost, (target - reached).astype(np.float32))
        found.append((error, np.abs(target - reference[name].numpy()), rounding(target)))
    return found


@pytest.mark.parametrize(("wire", "steps"), [("int8", 127), ("int4", 7)])
@given(exchange=exchanges())
def test_whole_steps_are_within_half_a_step_of_their_row(wire: Wire, steps: int, exchange: tuple[State, State, State]) -> None:
    for error, difference, rounded in checked_errors(exchange, wire):
        rows = rows_of(difference)
        step = rows.max(axis=1, initial=0.0, keepdims=True) / steps * (1 + 2.0**-7) + 2.0**-133
        assert (rows_of(error) <= step / 2 + rows_of(rounded)).all()


@given(exchanges())
def test_fp16_is_within_its_bound(exchange: tuple[State, State, State]) -> None:
    for error, difference, rounded in checked_errors(exchange, "fp16"):
        assert (error <= np.maximum(difference * 2.0**-11, difference.max(initial=0.0) * 2.0**-24) + rounded).all()


@pytest.mark.parametrize("wire", ["fp16", "int8", "int4"])
def test_what_is_lost_arrives_later(wire: Wire) -> None:
    """Error feedback: after many rounds the receiver's sum of steps is the sender's, but for what the last payload lost."""
    generator = torch.Generator().manual_seed(0)
    held: State = {"a": torch.zeros(5, 7)}
    residual: State = {}
    meant = torch.zeros(5, 7, dtype=torch.float64)
    for _ in range(50):
        step = torch.randn(5, 7, generator=generator) * torch.logspace(-4, 0, 7)
        state = {"a": held["a"] + step}
        meant += state["a"].double() - held["a"].double()
        encoded = encode(state, held, wire, residual)
        held, residual = encoded.decoded, encoded.residual
    without = torch.logspace(-4, 0, 7) * 50**0.5 * 2 / (7 if wire == "int4" else 127)
    assert ((held["a"].double() + residual["a"].double()) - meant).abs().max() < 1e-5
    assert (residual["a"].abs() < without).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("wire", WIRES)
def test_what_is_not_finite_is_not_sent(wire: Wire, bad: float) -> None:
    with pytest.raises(UpdateRefused, match="a: NaN or infinite"):
        encode({"a": torch.tensor([1.0, bad])}, {"a": torch.zeros(2)}, wire, {})


@pytest.mark.parametrize("wire", ["fp16", "int8", "int4"])
def test_a_full_state_is_never_rounded(wire: Wire) -> None:
    with pytest.raises(ValueError, match="full state travels as fp32"):
        encode(STATE, None, wire, {})


STATE: State = {"a": torch.linspace(-1, 1, 12).reshape(3, 4), "b": torch.tensor(0.25)}
REFERENCE: State = {"a": torch.zeros(3, 4), "b": torch.tensor(0.125)}
MANIFEST = manifest_of(STATE)


def test_a_small_step_costs_a_small_share() -> None:
    generator = torch.Generator().manual_seed(1)
    held = {"a": torch.randn(64, 256, generator=generator)}
    state = {"a": held["a"] + 1e-3 * torch.randn(64, 256, generator=generator)}
    sizes = {wire: encode(state, held, wire, {}).figures.bytes_after for wire in WIRES}
    assert (
        sizes["int4"]
        < 0.125 * 4 * 64 * 256
        < sizes["int8"]
        < 0.25 * 4 * 64 * 256
        < sizes["fp16"]
        < 0.5 * 4 * 64 * 256
        < sizes["fp32"]
        < 0.8 * 4 * 64 * 256
    )
    assert all(encode(held, held, wire, {}).figures.bytes_after < 500 for wire in WIRES)


@pytest.mark.parametrize("wire", WIRES)
def test_another_reference_is_noticed(wire: Wire) -> None:
    payload = encode(STATE, REFERENCE, wire, {}).payload
    with pytest.raises(ReferenceMissing, match=r"against state [0-9a-f]{16}, this side holds [0-9a-f]{16}"):
        decode(payload, STATE, MANIFEST)
    with pytest.raises(ReferenceMissing, match="this side holds none"):
        decode(payload, None, MANIFEST)


@pytest.mark.parametrize("wire", WIRES)
def test_no_byte_can_be_changed_or_cut(wire: Wire) -> None:
    payload = encode(STATE, REFERENCE, wire, {}).payload
    honest = bits(decode(payload, REFERENCE, MANIFEST))
    for position in range(len(payload)):
        changed = payload[:position] + bytes([payload[position] ^ 0x10]) + payload[position + 1 :]
        with suppress(UpdateRefused):  # a few bits of a zlib stream say nothing about its content
            assert bits(decode(changed, REFERENCE, MANIFEST)) == honest
        with pytest.raises(UpdateRefused):
            decode(payload[:position], REFERENCE, MANIFEST)
    with pytest.raises(UpdateRefused, match="something follows"):
        decode(payload + b"x", REFERENCE, MANIFEST)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(payload: bytes) -> None:
    for content in (payload, b"FSC1" + payload, b"FSC1" + struct.pack(">I", len(payload)) + payload):
        with pytest.raises(UpdateRefused):
            decode(content, REFERENCE, MANIFEST)


@pytest.mark.parametrize("wire", WIRES)
@given(data=st.data())
def test_any_body_is_refused_or_finite(wire: Wire, data: st.DataObject) -> None:
    """A sender can make the digest fit whatever it likes; no body makes the decoder fail or lets through what is not finite."""
    size = body_size(wire, [(3, 4), ()])
    body = data.draw(st.binary(min_size=size, max_size=size))
    with pytest.raises(UpdateRefused, match=r"NaN or infinite|gives another state"):
        decode(pack(header(wire=wire), body), REFERENCE, MANIFEST)


def header(**changes: Any) -> Header:
    valid = Header(wire="fp32", reference=state_digest(REFERENCE), result="0" * 16, tensors=(("a", (3, 4)), ("b", ())))
    return valid.model_copy(update=changes)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ((("a", (3, 4)),), "0 unknown and 1 missing tensors, such as 'b'"),
        ((("a", (3, 4)), ("b", ()), ("c", (1,))), "1 unknown and 0 missing tensors, such as 'c'"),
        ((("a", (4, 3)), ("b", ())), r"a: found shape \(4, 3\), expected \(3, 4\)"),
        ((("a", (3, -4)), ("b", ())), r"a: found shape \(3, -4\)"),
        ((("b", ()), ("a", (3, 4))), "not sorted"),
        ((("a", (3, 4)), ("a", (3, 4)), ("b", ())), "doubled"),
    ],
)
def test_other_tensors_than_the_manifests_are_refused(tensors: Any, words: str) -> None:
    with pytest.raises(UpdateRefused, match=words):
        decode(pack(header(tensors=tensors), bytes(52)), REFERENCE, MANIFEST)


def test_nan_is_refused_however_it_is_sent() -> None:
    arrays_with_nan = [np.full((3, 4), np.nan), np.zeros(())]
    body = to_bytes("fp32", arrays_with_nan, [tensor.numpy() for tensor in REFERENCE.values()])
    with pytest.raises(UpdateRefused, match="a: NaN or infinite"):
        decode(pack(header(), body), REFERENCE, MANIFEST)


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    assert len(bomb) < 1 << 17
    written = []
    inflater = zlib.decompressobj

    class Counting:
        def __init__(self) -> None:
            self._stream = inflater()

        def decompress(self, data: bytes, most: int) -> bytes:
            written.append(len(content := self._stream.decompress(data, most)))
            return content

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    head = zlib.compress(header().model_dump_json().encode())
    for payload in (b"FSC1" + struct.pack(">I", len(head)) + head + bomb, b"FSC1" + struct.pack(">I", len(bomb)) + bomb):
        with pytest.raises(UpdateRefused, match=r"holds more than \d+ bytes"):
            decode(payload, REFERENCE, MANIFEST)
    assert max(written) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"wire": "int3"},
        {"reference": "../../etc"},
        {"result": 7},
        {"more": 1},
        {"tensors": [["a"]]},
        {"tensors": None},
    ],
)
def test_headers_of_another_make_are_refused(change: dict[str, Any]) -> None:
    head = zlib.compress(json.dumps(json.loads(header().model_dump_json()) | change).encode())
    with pytest.raises(UpdateRefused, match=r"the payload's header has [12] faults"):
        decode(b"FSC1" + struct.pack(">I", len(head)) + head + zlib.compress(bytes(52)), REFERENCE, MANIFEST)


def sent(head: object) -> bytes:
    deflated = zlib.compress(json.dumps(head).encode())
    return b"FSC1" + struct.pack(">I", len(deflated)) + deflated + zlib.compress(bytes(52))


def test_junk_anywhere_in_a_header_is_refused() -> None:
    honest = json.loads(header().model_dump_json())
    for where, changed in changed_once(honest):
        try:
            decode(sent(changed), REFERENCE, MANIFEST)
        except UpdateRefused as error:
            assert len(str(error)) < 400, where
        else:
            raise AssertionError(where)
        with suppress(UpdateRefused):
            assert all(isinstance(name, str) for name in told_names(sent(changed)))


@given(st.binary(max_size=60))
def test_names_are_told_of_anything_or_it_is_refused(content: bytes) -> None:
    assert told_names(encode(STATE, REFERENCE, "fp32", {}).payload) == ["a", "b"]
    for payload in (content, b"FSC1" + content, sent([content.hex()])):
        with pytest.raises(UpdateRefused):
            told_names(payload)


def test_tensors_that_stay_at_their_site_do_not_come() -> None:
    local = TensorEntry(name="local", shape=(1,), dtype="float32", travels="none")
    with_local = MANIFEST.model_copy(update={"tensors": (*MANIFEST.tensors, local)})
    payload = encode(STATE, REFERENCE, "fp32", {}).payload
    assert list(decode(payload, REFERENCE, with_local)) == ["a", "b"]
    assert unpack(payload, with_local)[0].wire == "fp32"


@pytest.mark.parametrize("wire", WIRES)
def test_a_downlink_goes_on_from_its_checkpoint_with_the_same_bytes(wire: Wire) -> None:
    generator = torch.Generator().manual_seed(2)
    states = [{"a": torch.randn(3, 4, generator=generator), "b": torch.randn((), generator=generator)} for _ in range(4)]
    whole = Downlink(wire, REFERENCE)
    sent = [whole.send(state).payload for state in states]
    cut = Downlink(wire, REFERENCE)
    for state in states[:2]:
        cut.send(state)
    restored, aggregate = Downlink.restored(wire, states[2] | cut.state())
    assert bits(aggregate) == bits(states[2])
    assert [restored.send(state).payload for state in states[2:]] == sent[2:]
    assert bits(restored.held) == bits(whole.held)
    assert bits(decode(restored.full().payload, None, MANIFEST)) == bits(whole.held)


def test_the_first_message_of_a_run_is_exact() -> None:
    downlink = Downlink("int8", REFERENCE)
    assert bits(downlink.send(STATE).decoded) == bits(STATE)
