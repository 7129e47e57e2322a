"""Bytes and seconds of encrypted sums, beside the codec's on the same updates.

python -m benchmarks.encryption [--values 293332 9600000] [--sites 3]

Updates are drawn: normal steps of 1e-3 around a state of normal values of 0.02, in tensors of at most 1000 x 1000. Under each number of
values (that of the default recipe on LiteMedSAM, and about that of the whole model) each site encrypts its update with a weight of 20
cases, a server adds them, one site decrypts the sum. Printed: bytes a value, seconds of each step for one site's update or the one sum, the
largest error of the mean; beside them, of fp32 and int4 of the codec, bytes a value, seconds, the largest error of one update.
Bytes of fp32 and int4 depend on how the values are spread; an encrypted update has the same bytes whatever is in it.
Appends a line to benchmarks/results/encryption.jsonl. Needs the extra encryption.
"""

import argparse
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import records
from fedsam_pipeline.federation.codec.coding import decode, encode
from fedsam_pipeline.federation.encrypted_sums import EncryptedSum, SiteCipher, make_key
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry, Wire

RESULTS = records.RESULTS / "encryption.jsonl"
WEIGHT = 20.0
SIDE = 1000
State = dict[str, Tensor]


def shapes(values: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of tensors with so many values together."""
    whole, rest = divmod(values, SIDE * SIDE)
    rows, left = divmod(rest, SIDE)
    sizes: list[tuple[int, ...]] = [(SIDE, SIDE)] * whole + [(rows, SIDE)] * bool(rows) + [(left,)] * bool(left)
    return {f"tensor_{number:02d}": shape for number, shape in enumerate(sizes)}


def drawn(values: int, scale: float, seed: int) -> State:
    """Tensors of normal values."""
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes(values).items()}


def flat(state: State) -> np.ndarray:
    """All values, float64, in sorted order of names."""
    return np.concatenate([state[name].double().numpy().ravel() for name in sorted(state)])


def encrypted(reference: State, updates: list[State]) -> dict[str, float]:
    """One sum from keys to values."""
    started = time.perf_counter()
    cipher = SiteCipher(make_key())
    key_seconds, values = time.perf_counter() - started, sum(tensor.numel() for tensor in reference.values())
    total = EncryptedSum(values)
    encrypt_seconds, add_seconds = [], []
    for update in updates:
        started = time.perf_counter()
        part = cipher.encrypt(update, reference, WEIGHT, len(updates))
        encrypt_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        total.add(part)
        add_seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    found, parts = cipher.decrypt(total.payload())
    decrypt_seconds = time.perf_counter() - started
    mean = sum(flat(update) - flat(reference) for update in updates) / len(updates)
    return {
        "bytes": len(part),
        "encrypt_seconds": float(np.median(encrypt_seconds)),
        "add_seconds": float(np.median(add_seconds)),
        "decrypt_seconds": decrypt_seconds,
        "key_seconds": key_seconds,
        "largest_error": float(np.abs(found.astype(np.float64) / (WEIGHT * parts) - mean).max()),
    }


def coded(reference: State, update: State, wire: Wire) -> dict[str, float]:
    """One update through the codec."""
    entries = tuple(TensorEntry(name=name, shape=tuple(tensor.shape), dtype="float32", travels="both") for name, tensor in update.items())
    payload = encode(update, reference, wire, {})
    started = time.perf_counter()
    state = decode(payload.payload, reference, Manifest(recipe="drawn", base_model="none", tensors=entries))
    return {
        "bytes": len(payload.payload),
        "encode_seconds": payload.figures.seconds,
        "decode_seconds": time.perf_counter() - started,
        "largest_error": float(np.abs(flat(state) - flat(update)).max()),
    }


def measure(values: int, sites: int) -> dict[str, Any]:
    """The figures of one number of values."""
    reference = drawn(values, 0.02, seed=0)
    moves = [drawn(values, 1e-3, seed=number + 1) for number in range(sites)]
    updates = [{name: reference[name] + move[name] for name in reference} for move in moves]
    wires: tuple[Wire, ...] = ("fp32", "int4")
    return {
        "values": values,
        "sites": sites,
        "encrypted": encrypted(reference, updates),
        **{wire: coded(reference, updates[0], wire) for wire in wires},
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, nargs="+", default=[293332, 9600000])
    parser.add_argument("--sites", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(values, arguments.sites) for values in arguments.values]
    for figures in found:
        print(f"\n{figures['values']} values, {figures['sites']} sites")
        for name in ("encrypted", "fp32", "int4"):
            row = figures[name]
            seconds = ", ".join(f"{key.removesuffix('_seconds')} {row[key]:.3f} s" for key in row if key.endswith("_seconds"))
            print(f"{name:<10}{row['bytes'] / figures['values']:>7.2f} bytes a value; {seconds}; largest error {row['largest_error']:.1e}")
    records.keep(RESULTS, {"runs": found, **records.machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
