"""States of an adapter as payloads and back: differences against what both sides hold, quantised, deflated. Pure: no Flower, no disk."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsam_pipeline.federation.codec.payload import Header, expected_tensors, pack, state_digest, unpack
from fedsam_pipeline.federation.codec.wires import from_bytes, to_bytes
from fedsam_pipeline.federation.updates import UpdateRefused, checked_tensors
from fedsam_pipeline.specs.manifest import Manifest, Wire


class ReferenceMissing(UpdateRefused):
    """The payload's differences are against a state that this side does not hold; the sender has to send the full state."""


@dataclass(frozen=True)
class CodecFigures:
    """What coding took; for ``communication.json``.

    Attributes:
        tensors: number of them.
        bytes_before: of the tensors in float32.
        bytes_after: of the payload.
        seconds: of encoding, or of decoding.
    """

    tensors: int
    bytes_before: int
    bytes_after: int
    seconds: float


@dataclass(frozen=True)
class Encoded:
    """A payload, and what its sender must keep.

    Attributes:
        payload: what travels.
        decoded: the state that the receiver ends with, bit for bit.
        residual: what quantisation lost, to be added to this sender's next difference; empty under ``fp32``.
        figures: of this encoding.
    """

    payload: bytes
    decoded: dict[str, Tensor]
    residual: dict[str, Tensor]
    figures: CodecFigures


def encode(tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None, wire: Wire, residual: Mapping[str, Tensor]) -> Encoded:
    """A state as a payload.

    Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019): what quantisation loses now is sent with the next
    difference, so that over the rounds nothing is lost, only late. Done in both directions, as in DoubleSqueeze (Tang et al., ICML 2019).

    Args:
        tensors: the state, float32 on the CPU.
        reference: the state that the receiver holds, same names and shapes; ``None``: a full state. A full state travels as ``fp32``.
        wire: ``fp32`` is exact; bounds of the others are in ``wires.py``.
        residual: of this sender's last payload in this direction; empty at the start.

    Raises:
        UpdateRefused: a value is NaN or infinite.
        ValueError: a lossy wire without a reference: it would round a whole state instead of a step.
    """
    started = time.perf_counter()
    if reference is None and wire != "fp32":
        raise ValueError("a full state travels as fp32")
    names = sorted(tensors)
    values = [_finite(name, tensors[name]) for name in names]
    references = [np.zeros_like(value) for value in values] if reference is None else [_array(reference[name]) for name in names]
    targets = [value.astype(np.float64) for value in values]
    if residual:
        targets = [np.asarray(target + _array(residual[name])) for name, target in zip(names, targets, strict=True)]
    body = to_bytes(wire, targets, references)
    if wire == "fp32":
        arrays, lost = values, {}
    else:
        arrays = from_bytes(wire, body, references)
        lost = {name: _tensor(t - a) for name, t, a in zip(names, targets, arrays, strict=True)}
    header = Header(
        wire=wire,
        reference=None if reference is None else state_digest(reference),
        result=state_digest(dict(zip(names, arrays, strict=True))),
        tensors=tuple((name, value.shape) for name, value in zip(names, values, strict=True)),
    )
    payload = pack(header, body)
    before = sum(value.nbytes for value in values)
    figures = CodecFigures(len(names), before, len(payload), time.perf_counter() - started)
    return Encoded(payload, {name: _tensor(array) for name, array in zip(names, arrays, strict=True)}, lost, figures)


def decode(payload: bytes, reference: Mapping[str, Tensor] | None, manifest: Manifest) -> dict[str, Tensor]:
    """The state of a payload, in the manifest's order.

    Args:
        payload: from another machine; nothing in it is trusted.
        reference: the state this side holds; ``None``: none.
        manifest: what may come.

    Raises:
        ReferenceMissing: its differences are against another state.
        UpdateRefused: it is damaged, holds what the manifest does not allow, or does not give the state that its sender says.
    """
    header, body = unpack(payload, manifest)
    if header.reference is None:
        references = [np.zeros(shape, np.float32) for _, shape in expected_tensors(manifest)]
    else:
        held = None if reference is None else state_digest(reference)
        if reference is None or held != header.reference:
            raise ReferenceMissing(f"differences against state {header.reference}, this side holds {held or 'none'}")
        references = [_array(reference[name]) for name, _ in expected_tensors(manifest)]
    arrays = dict(zip((name for name, _ in header.tensors), from_bytes(header.wire, body, references), strict=True))
    tensors = checked_tensors(manifest, arrays)
    if state_digest(tensors) != header.result:
        raise UpdateRefused(f"decoding gives another state than the sender's {header.result}: the payload was changed on its way")
    return tensors


def _finite(name: str, tensor: Tensor) -> NDArray[np.float32]:
    array = _array(tensor)
    if not np.isfinite(array).all():
        raise UpdateRefused(f"{name}: NaN or infinite values")
    return array


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().contiguous().numpy()
    return array


def _tensor(array: NDArray[np.float32] | NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
