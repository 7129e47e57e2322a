"""Bytes and seconds of each wire on updates of a real adapter: LiteMedSAM, recipe flap_sam, trained for a few rounds on the demo cohort.

python -m benchmarks.codec [--rounds 4] [--local_steps 10] [--recipe flap_sam]

Sites train, exactly, in this process; of every round the state that travels down and the update of every site that travels up are encoded
under each wire. Printed, per direction: bytes a message, ratio to float32, seconds of encoding and decoding, and the error of the decoded
difference (RMS, relative). Beside them, on the same int8 steps: Zstandard by python-blosc2 with and without its bit shuffle; and on the
planes: zlib with its search for phrases, and without (as payloads are packed).
Appends a line to benchmarks/results/codec.jsonl. Needs the weights: fedsam_download_weights lite_medsam
"""

import argparse
import statistics
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from torch import Tensor

from benchmarks import records
from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.federation.codec.coding import decode, encode
from fedsam_pipeline.federation.codec.wires import WIRES, to_bytes
from fedsam_pipeline.flower.site_worker import SiteWorker
from fedsam_pipeline.model.registry import DEFAULT_BASE_MODEL
from fedsam_pipeline.pipeline.plan_and_preprocess import PlanRequest, plan_and_preprocess
from fedsam_pipeline.pipeline.train_request import TrainRequest, run_setups
from fedsam_pipeline.specs.manifest import Manifest, Wire

DATASET = "Dataset001_Demo"
RESULTS = records.RESULTS / "codec.jsonl"
State = dict[str, Tensor]


@dataclass
class Figures:
    """Of all messages of one wire in one direction."""

    bytes_after: list[int] = field(default_factory=list)
    encode_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)


def measure(state: State, reference: State, wire: Wire, manifest: Manifest, figures: Figures) -> None:
    """Encodes and decodes one difference."""
    encoded = encode(state, reference, wire, {})
    started = time.perf_counter()
    decode(encoded.payload, reference, manifest)
    figures.decode_seconds.append(time.perf_counter() - started)
    figures.encode_seconds.append(encoded.figures.seconds)
    figures.bytes_after.append(encoded.figures.bytes_after)
    moved = _flat(state) - _flat(reference)
    figures.error.append(float(np.linalg.norm(_flat(encoded.decoded) - _flat(state)) / np.linalg.norm(moved)))


def zstandard_sizes(state: State, reference: State) -> dict[str, int]:
    """Bytes of the same differences as whole steps, a row the first axis, under Zstandard; without scales and header."""
    steps = []
    for name in sorted(state):
        rows = (state[name] - reference[name]).numpy().astype(np.float64)
        rows = rows.reshape(len(rows), -1) if rows.ndim > 1 else rows.reshape(1, -1)
        scale = np.abs(rows).max(axis=1, keepdims=True) / 127
        steps.append(np.rint(np.divide(rows, scale, where=scale > 0, out=np.zeros_like(rows))).astype(np.int8).ravel())
    raw = np.concatenate(steps).tobytes()
    sizes = {}
    for name, chosen in (("plain", blosc2.Filter.NOFILTER), ("bit shuffle", blosc2.Filter.BITSHUFFLE)):
        for level in (5, 9):
            packed = blosc2.compress2(
                raw, typesize=1, clevel=level, codec=blosc2.Codec.ZSTD, filters=[chosen], filters_meta=[0], nthreads=1
            )
            sizes[f"blosc2 zstd {level}, {name}"] = len(packed)
    return sizes


def deflated(state: State, reference: State, wire: Wire) -> dict[str, tuple[int, float]]:
    """Bytes and seconds of zlib's two ways on the planes of one difference."""
    names = sorted(state)
    body = to_bytes(wire, [state[name].numpy().astype(np.float64) for name in names], [reference[name].numpy() for name in names])
    found = {}
    for name, strategy in (("phrases", zlib.Z_DEFAULT_STRATEGY), ("runs", zlib.Z_RLE)):
        started = time.perf_counter()
        packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
        size = len(packer.compress(body) + packer.flush())
        found[name] = size, time.perf_counter() - started
    return found


def _flat(state: State) -> np.ndarray:
    return np.concatenate([state[name].numpy().astype(np.float64).ravel() for name in sorted(state)])


def run(folder: Path, recipe: str, rounds: int, local_steps: int) -> dict[str, Any]:
    """Trains and measures; the record that is appended."""
    make_demo_dataset(folder / "raw" / DATASET, size="tiny")
    plan_and_preprocess(folder / "raw" / DATASET, folder / "preprocessed", PlanRequest(DEFAULT_BASE_MODEL))
    request = TrainRequest(recipe=recipe, rounds=rounds + 1, local_steps=local_steps, device="cpu")
    (setup,) = run_setups(folder / "preprocessed" / DATASET, folder / "results", request)
    torch.set_num_threads(usable_cores())
    manifest = SiteWorker(setup.sites[0]).manifest
    state = SiteWorker(setup.sites[0]).held(0)
    before = state
    table: dict[str, dict[Wire, Figures]] = {way: defaultdict(Figures) for way in ("down", "up")}
    others: dict[str, list[int]] = defaultdict(list)
    zlib_ways: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for round_number in range(1, rounds + 1):
        updates = []
        for site in setup.sites:
            worker = SiteWorker(site)
            worker.take(state, {})
            updates.append(worker.train(setup.schedule, round_number)[0].decoded)
        for wire in WIRES:
            for update in updates:
                measure(update, state, wire, manifest, table["up"][wire])
                for name, found in deflated(update, state, wire).items():
                    zlib_ways[f"{wire} {name}"].append(found)
            if round_number > 1:
                measure(state, before, wire, manifest, table["down"][wire])
        for update in updates:
            for name, size in zstandard_sizes(update, state).items():
                others[name].append(size)
        before, state = state, {name: torch.stack([update[name] for update in updates]).mean(dim=0) for name in state}
    return {
        "recipe": recipe,
        "base_model": setup.model.plans.base_model,
        "rounds": rounds,
        "local_steps": local_steps,
        "tensors": len(state),
        "parameters": manifest.federated_parameters,
        "bytes_fp32": 4 * manifest.federated_parameters,
        "ways": {way: {wire: _medians(figures) for wire, figures in wires.items()} for way, wires in table.items()},
        "zlib_up": {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in zlib_ways.items()},
        "int8_steps_up": {name: statistics.median(sizes) for name, sizes in others.items()},
        **records.machine(),
    }


def _medians(figures: Figures) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in vars(figures).items()}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--local_steps", type=int, default=10)
    parser.add_argument("--recipe", default="flap_sam")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: at least 2, the first state that travels down comes in round 2")
    with tempfile.TemporaryDirectory() as name:
        record = run(Path(name), arguments.recipe, arguments.rounds, arguments.local_steps)
    print(f"\n{record['recipe']} on {record['base_model']}: {record['parameters']} parameters, {record['bytes_fp32']} bytes in float32")
    print(f"{'':<12}{'bytes':>10}{'ratio':>8}{'encode s':>10}{'decode s':>10}{'error':>10}   (medians)")
    for way, wires in record["ways"].items():
        for wire, found in wires.items():
            ratio = record["bytes_fp32"] / found["bytes_after"]
            seconds = f"{found['encode_seconds']:>10.3f}{found['decode_seconds']:>10.3f}"
            print(f"{way:<6}{wire:<6}{found['bytes_after']:>10.0f}{ratio:>8.2f}{seconds}{found['error']:>10.5f}")
    for name, size in record["int8_steps_up"].items():
        print(f"up, int8 steps alone, {name}: {size:.0f}")
    for name, (size, seconds) in record["zlib_up"].items():
        print(f"up, zlib, {name}: {size:.0f} bytes, {seconds:.4f} s")
    records.keep(RESULTS, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
