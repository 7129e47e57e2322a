"""The bytes of a payload: a short prefix, a header in JSON, a body; both deflated (RFC 1950). No pickle, and no size is believed.

    4 bytes   "FSC1"
    4 bytes   length of the deflated header, big-endian
    ...       the header, deflated: {"schema_version": 1, "wire": "int8", "reference": "<16 hex>" or null, "result": "<16 hex>",
              "tensors": [["name", [rows, columns]], ...]}
    ...       the body, deflated: the planes of ``wires.py``

Zlib rather than Zstandard: on bit planes it comes out 4 to 8 % below Zstandard on plain whole numbers, and level with Zstandard on bit
planes (benchmarks/codec.py); it is part of Python, and its decoder takes a bound on what it writes.
"""

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from fedsam_pipeline.federation.codec.wires import body_size
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.specs.document import Document
from fedsam_pipeline.specs.manifest import Manifest, Wire

_MAGIC = b"FSC1"
_PREFIX = struct.Struct(">4sI")
_LEVEL = 6
_HEADER_ROOM = 256
"""bytes that a header takes beside its list of tensors"""
_TOLD_ROOM = 1 << 20
"""bytes of a header that is read without a manifest"""
_DIGEST = r"^[0-9a-f]{16}$"


class Header(Document):
    """What a payload says of itself."""

    schema_version: Literal[1] = 1
    wire: Wire
    reference: str | None = Field(pattern=_DIGEST)
    """digest of the state that differences are taken against; ``None``: against zeros, so the payload is a full state"""
    result: str = Field(pattern=_DIGEST)
    """digest of the state that the receiver must end with"""
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    """names, sorted, and shapes"""


def state_digest(tensors: Mapping[str, Tensor] | Mapping[str, NDArray[np.float32]]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 over names and little-endian float32 values, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(np.asarray(tensors[name]), "<f4").data)
    return digest.hexdigest()[:16]


def pack(header: Header, body: bytes) -> bytes:
    """Header and body as one payload; the same input gives the same bytes."""
    head = zlib.compress(header.model_dump_json().encode(), _LEVEL)
    return _PREFIX.pack(_MAGIC, len(head)) + head + zlib.compress(body, _LEVEL)


def unpack(payload: bytes, manifest: Manifest) -> tuple[Header, bytes]:
    """Header and body. Everything that is allocated is bounded by the manifest, whatever the payload says.

    Raises:
        UpdateRefused: it is no payload, is cut short or damaged, or holds other tensors than the manifest's federated ones.
    """
    expected = expected_tensors(manifest)
    room = _HEADER_ROOM + len(Header(wire="fp32", reference=None, result="0" * 16, tensors=expected).model_dump_json())
    header, head_end = _header(payload, room)
    _check_tensors(header.tensors, expected)
    size = body_size(header.wire, [shape for _, shape in expected])
    body = _inflated(payload[head_end:], size, "body")
    if len(body) != size:
        raise UpdateRefused(f"the payload's body is {len(body)} bytes, expected {size} for {header.wire}")
    return header, body


def told_names(payload: bytes) -> list[str]:
    """Names of the tensors that a payload says it holds, whatever a manifest allows.

    Raises:
        UpdateRefused: it is no payload, or its header is damaged or too long.
    """
    header, _ = _header(payload, _TOLD_ROOM)
    return [name for name, _ in header.tensors]


def _header(payload: bytes, room: int) -> tuple[Header, int]:
    """The header, of at most ``room`` bytes, and where the body begins."""
    if len(payload) < _PREFIX.size or payload[: len(_MAGIC)] != _MAGIC:
        raise UpdateRefused(f"{len(payload)} bytes that are no payload of this version")
    end = _PREFIX.size + _PREFIX.unpack_from(payload)[1]
    text = _inflated(payload[_PREFIX.size : end], room, "header")
    try:
        return Header.model_validate_json(text), end
    except ValidationError as error:
        raise UpdateRefused(
            f"the payload's header has {error.error_count()} faults, the first at {error.errors()[0]['loc']!s:.80}"
        ) from None


def expected_tensors(manifest: Manifest) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the federated tensors, sorted by name."""
    return tuple(sorted((entry.name, entry.shape) for entry in manifest.federated))


def _check_tensors(found: Sequence[tuple[str, tuple[int, ...]]], expected: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    names, allowed = [name for name, _ in found], dict(expected)
    unknown, missing = sorted(set(names) - set(allowed)), sorted(set(allowed) - set(names))
    if unknown or missing:
        raise UpdateRefused(f"{len(unknown)} unknown and {len(missing)} missing tensors, such as {(unknown + missing)[0]!r:.80}")
    if names != list(allowed):
        raise UpdateRefused("tensors are doubled, or not sorted by name")
    for name, shape in found:
        if shape != allowed[name]:
            raise UpdateRefused(f"{name}: found shape {shape!s:.80}, expected {allowed[name]}")


def _inflated(deflated: bytes, most: int, part: str) -> bytes:
    """At most ``most`` bytes out of a whole zlib stream with nothing behind it."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(deflated, most + 1)
    except zlib.error as error:
        raise UpdateRefused(f"the payload's {part} is damaged ({error})") from None
    if len(content) > most:
        raise UpdateRefused(f"the payload's {part} holds more than {most} bytes")
    if not stream.eof or stream.unused_data:
        raise UpdateRefused(f"the payload's {part} is cut short, or something follows it")
    return content
