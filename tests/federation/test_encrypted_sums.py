"""Encrypted sums: exact, in any order, closed to who has no key; and foreign bytes are refused before TenSEAL parses them."""

import builtins
import struct
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation import encrypted_sums
from fedsam_pipeline.federation.ciphertext_bytes import VALUES, check_ciphertext
from fedsam_pipeline.federation.encrypted_sums import (
    MAX_SITES,
    PLAIN_MODULUS,
    STEP,
    EncryptedSum,
    SiteCipher,
    make_key,
    public_parameters,
    tensors_of,
    write_key,
)
from fedsam_pipeline.federation.updates import UpdateRefused

SHAPES = (("a", (50, 90)), ("b", (7,)), ("c", ()))
COUNT = 4508
KEY = make_key()
CIPHER = SiteCipher(KEY)


def state(seed: int, scale: float = 0.01) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES}


def flat(tensors: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([tensors[name].numpy().astype(np.float64).ravel() for name in sorted(tensors)])


REFERENCE = state(99)
PART = CIPHER.encrypt(state(1), REFERENCE, 3.0, sites=3)
CHUNK = PART[12 : 12 + struct.unpack_from(">I", PART, 8)[0]]


def summed(parts: list[bytes]) -> bytes:
    total = EncryptedSum(COUNT)
    for part in parts:
        total.add(part)
    return total.payload()


@settings(max_examples=12, deadline=None)
@given(
    weights=st.lists(st.floats(0, 400), min_size=1, max_size=5),
    scale=st.floats(1e-6, 5),
    seed=st.integers(0, 1000),
)
def test_the_sum_is_the_weighted_sum(weights: list[float], scale: float, seed: int) -> None:
    updates = [state(seed + index, scale) for index in range(len(weights))]
    parts = [CIPHER.encrypt(update, REFERENCE, weight, len(weights)) for update, weight in zip(updates, weights, strict=True)]
    expected = sum(weight * (flat(update) - flat(REFERENCE)) for update, weight in zip(updates, weights, strict=True))
    found, number = CIPHER.decrypt(summed(parts))
    assert number == len(weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2.0**-23, atol=len(weights) * STEP / 2)  # float32, and a rounding a site


def test_the_order_of_arrival_does_not_change_a_bit() -> None:
    parts = [CIPHER.encrypt(state(seed), REFERENCE, seed + 1, 3) for seed in range(3)]
    sums = {CIPHER.decrypt(summed(list(order)))[0].tobytes() for order in permutations(parts)}
    assert len(sums) == 1


def test_as_many_sites_as_fit_at_the_largest_values_they_may_have() -> None:
    most = (PLAIN_MODULUS // 2) // MAX_SITES * STEP
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES}
    largest = {name: torch.full(shape, most * 0.999999) for name, shape in SHAPES}
    part = CIPHER.encrypt(largest, zeros, 1.0, MAX_SITES)
    doubled = EncryptedSum(COUNT)
    doubled.add(part)
    for _ in range(10):  # 1024 times as much noise, and as much of the range, as one part
        if 2 * doubled.parts * np.abs(flat(largest)).max() / STEP > PLAIN_MODULUS // 2:
            break
        payload, parts = doubled.payload(), doubled.parts
        doubled = EncryptedSum(COUNT)
        doubled.add(payload)
        doubled.add(payload)
        doubled.parts = 2 * parts
    assert doubled.parts == 512
    values, parts = CIPHER.decrypt(doubled.payload())
    assert parts == 512
    np.testing.assert_allclose(values, 512 * flat(largest), rtol=1e-6)


def test_who_adds_cannot_decrypt() -> None:
    context = tenseal.context_from(public_parameters())
    assert not context.has_secret_key()
    vector = tenseal.bfv_vector_from(context, CHUNK)
    with pytest.raises(ValueError, match="secret_key"):
        vector.decrypt()
    with pytest.raises(ValueError, match="encryption"):
        tenseal.bfv_vector(context, [1] * VALUES)
    assert len(public_parameters()) < 200  # parameters alone; the key has 50,000 bytes


def test_another_key_gives_no_value() -> None:
    other, number = SiteCipher(make_key()).decrypt(PART)
    own, _ = CIPHER.decrypt(PART)
    assert number != 1
    assert np.abs(other).mean() > 1000 * np.abs(own).mean()


def test_the_same_update_never_looks_the_same_and_shows_no_byte_of_it() -> None:
    again = CIPHER.encrypt(state(1), REFERENCE, 3.0, sites=3)
    assert again != PART and len(again) == len(PART)
    plain = state(1)["a"].numpy().tobytes()
    assert all(plain[at : at + 8] not in PART for at in range(0, len(plain), 4))


@pytest.mark.parametrize(
    ("change", "says"),
    [(np.nan, "NaN"), (np.inf, "NaN or infinite"), (1e6, "does not fit into an encrypted sum of 3 sites"), (-1e6, "does not fit")],
)
def test_what_does_not_fit_is_refused_at_the_site(change: float, says: str) -> None:
    update = state(1)
    update["b"][3] = change
    with pytest.raises(UpdateRefused, match=says):
        CIPHER.encrypt(update, REFERENCE, 3.0, sites=3)


@pytest.mark.parametrize("count", [VALUES - 1, VALUES, 2 * VALUES])
def test_values_that_fill_their_ciphertexts(count: int) -> None:
    ones, zeros = {"a": torch.ones(count)}, {"a": torch.zeros(count)}
    values, parts = CIPHER.decrypt(CIPHER.encrypt(ones, zeros, 2.0, 2))
    assert parts == 1 and values.shape == (count,) and (values == 2).all()


@pytest.mark.parametrize("sites", [0, MAX_SITES + 1])
def test_a_sum_of_a_number_of_sites_that_cannot_be(sites: int) -> None:
    with pytest.raises(UpdateRefused, match="at most 1000 fit"):
        CIPHER.encrypt(state(1), REFERENCE, 3.0, sites)


def wrapped(chunk: bytes) -> bytes:
    return PART[:8] + struct.pack(">I", len(chunk)) + chunk + PART[12 + len(CHUNK) :]


def changed(at: int, new: bytes) -> bytes:
    return CHUNK[:at] + new + CHUNK[at + len(new) :]


BLOCK = 8 + 16 + 7
"""where the header of Zstandard's block is"""
HOSTILE = {
    "nothing": b"",
    "another magic": b"FSC1" + PART[4:],
    "no ciphertext": PART[:8],
    "cut in a length": PART[:10],
    "cut in a ciphertext": PART[:-1],
    "something behind": PART + b"\0",
    "one ciphertext of two": PART[: 12 + len(CHUNK)],
    "more values": struct.pack(">4sI", b"FSE1", 3 * VALUES) + PART[8:],
    "no values": struct.pack(">4sI", b"FSE1", 0) + PART[8:],
    "a huge count": struct.pack(">4sI", b"FSE1", 2**32 - 1) + PART[8:],
    "a huge length": PART[:8] + struct.pack(">I", 2**32 - 1) + PART[12:],
    "an empty ciphertext": wrapped(b""),
    "a short ciphertext": wrapped(CHUNK[:20]),
    "another vector's length": wrapped(changed(2, b"\x81")),
    "another header of SEAL": wrapped(changed(8, b"\0")),
    "another version of SEAL": wrapped(changed(11, b"\x03")),
    "another compression": wrapped(changed(13, b"\x01")),
    "another size in SEAL's header": wrapped(changed(16, b"\xff" * 8)),
    "no frame": wrapped(changed(24, b"\0")),
    "a frame of more": wrapped(changed(29, b"\xff\xff")),
    "a block of one repeated byte": wrapped(changed(BLOCK, (1 | 1 << 1 | 2**20 << 3).to_bytes(3, "little"))),
    "a block that is not the last": wrapped(changed(BLOCK, bytes([CHUNK[BLOCK] & 0xFE]))),
    "parameters of another kind": wrapped(changed(BLOCK + 3, b"\0" * 32)),
    "three polynomials": wrapped(changed(BLOCK + 3 + 33, b"\x03")),
    "coefficients beyond the modulus": wrapped(changed(len(CHUNK) - 64, b"\xff" * 64)),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes(payload: bytes) -> None:
    total = EncryptedSum(COUNT)
    total.add(PART)
    with pytest.raises(UpdateRefused):
        total.add(payload)
    assert total.parts == 1
    np.testing.assert_array_equal(CIPHER.decrypt(total.payload())[0], CIPHER.decrypt(PART)[0])
    if payload != HOSTILE["more values"]:
        with pytest.raises(UpdateRefused):
            CIPHER.decrypt(payload)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_that_were_changed_are_refused_or_decrypt_to_something(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["cut", "random", "changed"]))
    if kind == "random":
        payload = b"FSE1" + data.draw(st.binary(max_size=300))
    elif kind == "cut":
        payload = PART[: data.draw(st.integers(0, len(PART) - 1))]
    else:
        at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(PART) - 9)))
        new = data.draw(st.binary(min_size=1, max_size=8))
        payload = PART[:at] + new + PART[at + len(new) :]
    try:
        values, _ = CIPHER.decrypt(payload)
        total = EncryptedSum(len(values))
        total.add(payload)
        assert np.isfinite(values).all()
    except UpdateRefused:
        assert kind != "changed" or payload != PART


def test_a_ciphertext_that_is_not_compressed_is_known_too() -> None:
    size = len(CHUNK) - 8 - 16 - 7 - 3
    plain = struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 0, 0, 0, 16 + size) + CHUNK[-size:]
    length = 16 + size
    varint = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
    check_ciphertext(b"\x0a\x02\x80\x20\x12" + varint + plain)


def test_values_become_tensors_in_sorted_order() -> None:
    found = tensors_of(CIPHER.decrypt(PART)[0], SHAPES)
    assert {name: array.shape for name, array in found.items()} == dict(SHAPES)
    np.testing.assert_allclose(found["b"].astype(np.float64), 3 * (state(1)["b"] - REFERENCE["b"]).numpy(), atol=1e-7)
    with pytest.raises(UpdateRefused, match="expected"):
        tensors_of(np.zeros(COUNT - 1, np.float32), SHAPES)


def test_a_key_is_written_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "encryption.key"
    write_key(path, KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    np.testing.assert_array_equal(SiteCipher.load(path).decrypt(PART)[0], CIPHER.decrypt(PART)[0])


@pytest.mark.parametrize("content", [b"", b"no key", KEY[:1000], public_parameters(), b"\0" * (2 << 20)])
def test_a_file_that_is_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encryption.key"
    path.write_bytes(content)
    with pytest.raises(FedsamError, match=r"cannot be used[\s\S]*the same at all of them"):
        SiteCipher.load(path)
    with pytest.raises(FedsamError, match="cannot be used"):
        write_key(tmp_path / "copy.key", content)
    assert not (tmp_path / "copy.key").exists()


def test_a_key_of_other_parameters() -> None:
    other = tenseal.context(
        tenseal.SCHEME_TYPE.BFV, 8192, PLAIN_MODULUS, [60, 60, 60], encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC, n_threads=1
    )
    with pytest.raises(FedsamError, match="cannot be used"):
        SiteCipher(other.serialize(save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False))


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match=r"cannot be read[\s\S]*that the sites share"):
        SiteCipher.load(tmp_path / "encryption.key")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "tenseal":
            raise ImportError("No module named 'tenseal'")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FedsamError, match=r"not installed[\s\S]*pip install 'fedsam-pipeline\[encryption\]'"):
        encrypted_sums.require_library()
