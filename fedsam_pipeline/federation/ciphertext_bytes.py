"""What a ciphertext of ``encrypted_sums.py`` looks like from outside: foreign bytes are held against it before TenSEAL parses them.

8 bytes   Protocol Buffers of TenSEAL: one vector of ``VALUES`` values, one ciphertext and its length
16 bytes  SEAL's header: magic number, its own length, version, compression, reserved, length of all that is SEAL's
...       97 bytes of parameters and 2 polynomials of ``VALUES`` coefficients of 8 bytes; as they are, or as one frame of Zstandard
          (RFC 8878) of one block, which can hold no more than its header says: no bytes that unpack to more than a ciphertext
"""

import struct

from fedsam_pipeline.federation.updates import UpdateRefused

VALUES = 4096
"""of a ciphertext: the degree of its polynomials"""
_ENVELOPE_BYTES = 8
_CONTENT = 97 + 2 * VALUES * 8
_SEAL = struct.Struct("<HBBBBHQ")
_SEAL_MAGIC, _SEAL_MAJOR = 0xA15E, 4
_PLAIN, _ZSTANDARD = 0, 2
_FRAME = struct.pack("<IBH", 0xFD2FB528, 0x60, _CONTENT - 256)
"""Zstandard's magic number; a frame in one segment with its length in two bytes and no checksum; that length, less 256"""
_RAW, _COMPRESSED = 0, 2


def check_ciphertext(chunk: bytes) -> None:
    """Holds one serialised ciphertext against what it must look like.

    Raises:
        UpdateRefused: it differs, or would unpack to something larger.
    """
    seal_bytes = len(chunk) - _ENVELOPE_BYTES
    envelope = b"\x0a\x02" + _varint(VALUES) + b"\x12" + _varint(max(seal_bytes, 0))
    if seal_bytes < _SEAL.size or not chunk.startswith(envelope) or len(envelope) != _ENVELOPE_BYTES:
        raise UpdateRefused(f"{len(chunk)} bytes that are no ciphertext")
    magic, header, major, _, compression, reserved, size = _SEAL.unpack_from(chunk, len(envelope))
    if (magic, header, major, reserved, size) != (_SEAL_MAGIC, _SEAL.size, _SEAL_MAJOR, 0, seal_bytes):
        raise UpdateRefused("a ciphertext has another header than SEAL 4 writes")
    body = chunk[len(envelope) + _SEAL.size :]
    if compression == _PLAIN and len(body) == _CONTENT:
        return
    if compression != _ZSTANDARD or not body.startswith(_FRAME) or len(body) < len(_FRAME) + 3:
        raise UpdateRefused("a ciphertext is packed in another way, or of another size")
    block = int.from_bytes(body[len(_FRAME) : len(_FRAME) + 3], "little")
    last, kind, length = block & 1, block >> 1 & 3, block >> 3
    if not last or kind not in (_RAW, _COMPRESSED) or length != len(body) - len(_FRAME) - 3 or length > _CONTENT:
        raise UpdateRefused("a ciphertext is packed into more than one block, or is cut short")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
