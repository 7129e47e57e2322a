"""The four wires: how the difference between a state and a reference becomes bytes, before entropy coding, and back.

============ ===================== ========================================================================================
wire         bytes a value         error of a decoded value
============ ===================== ========================================================================================
``fp32``     4                     none, bit for bit
``fp16``     2, two a tensor       at most 2^-11 of the difference, or 2^-24 of the tensor's largest where that is more
``int8``     1, two a row          at most half the row's scale; the scale is at most (1 + 2^-7) / 127 of its largest difference
``int4``     a half, two a row     the same with 7 in place of 127
============ ===================== ========================================================================================

To both errors comes the rounding of the sum of reference and difference to float32. Differences are taken in float64, from finite float32
values, so they cannot overflow; sums are cut at the largest float32.

Which rows ``int8`` and ``int4`` have is said by ``num_scales``.

Every step is one IEEE operation of numpy, so sender and receiver get the same bits on any machine. The bytes come out as planes (all
first bytes or bits, then all second ones, ...): with them a general entropy coder finds the order that a stream of whole numbers hides.
"""

import math
from typing import TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.specs.manifest import Wire, matrix_of, num_scales

WIRES: tuple[Wire, ...] = get_args(Wire)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bytes = NDArray[np.uint8]
T = TypeVar("T", bound=np.generic)

_BITS = {"int8": 8, "int4": 4}
_LARGEST_STEP = {"int8": 127, "int4": 7}
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def body_size(wire: Wire, shapes: list[tuple[int, ...]]) -> int:
    """Bytes that tensors of these shapes take before entropy coding."""
    count = sum(_count(shape) for shape in shapes)
    if wire == "fp32":
        return 4 * count
    if wire == "fp16":
        return 2 * len(shapes) + 16 * _plane_bytes(count)
    rows = sum(map(num_scales, shapes))
    return 16 * _plane_bytes(rows) + _BITS[wire] * _plane_bytes(count)


def to_bytes(wire: Wire, targets: list[Doubles], references: list[Floats]) -> bytes:
    """The differences ``targets - references`` as planes.

    Args:
        wire: ``fp32`` needs targets that are float32 values.
        targets, references: of the same shapes, finite.
    """
    if wire == "fp32":
        values = np.concatenate([target.astype(np.float32).ravel() for target in targets])
        return _byte_planes(_bit_differences(values, np.concatenate([reference.ravel() for reference in references])))
    differences = [target - reference.astype(np.float64) for target, reference in zip(targets, references, strict=True)]
    if wire == "fp16":
        exponents = np.array([_exponent(difference) for difference in differences], np.int64)
        halves = [np.ldexp(d, -e).astype(np.float16).ravel() for d, e in zip(differences, exponents, strict=True)]
        return (exponents + 256).astype(">u2").tobytes() + _bit_planes(np.concatenate(halves).view(np.uint16))
    scales, steps = zip(*(_quantized(difference, _LARGEST_STEP[wire]) for difference in differences), strict=True)
    return _bit_planes(np.concatenate(scales)) + _bit_planes(_zigzag8(np.concatenate(steps)), _BITS[wire])


def from_bytes(wire: Wire, body: bytes, references: list[Floats]) -> list[Floats]:
    """The states that ``to_bytes`` encoded, as the wire lets them through; may hold NaN or infinity where ``body`` is hostile.

    Args:
        wire: of the body.
        body: exactly ``body_size`` bytes.
        references: of the same shapes as at the sender.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _from_bytes(wire, body, references)


def _from_bytes(wire: Wire, body: bytes, references: list[Floats]) -> list[Floats]:
    shapes = [reference.shape for reference in references]
    count = sum(map(_count, shapes))
    raw = np.frombuffer(body, np.uint8)
    if wire == "fp32":
        known = np.concatenate([reference.ravel() for reference in references])
        return _split(_from_bit_differences(_from_byte_planes(raw), known), shapes)
    if wire == "fp16":
        head = 2 * len(shapes)
        exponents = raw[:head].view(">u2").astype(np.int64) - 256
        halves = _split(_from_bit_planes(raw[head:], 16, count).view(np.float16).astype(np.float64), shapes)
        return [_sum(r, np.ldexp(h, e)) for r, h, e in zip(references, halves, exponents, strict=True)]
    rows = list(map(num_scales, shapes))
    head = 16 * _plane_bytes(sum(rows))
    scales: list[NDArray[np.uint16]] = np.split(_from_bit_planes(raw[:head], 16, sum(rows)), np.cumsum(rows)[:-1])
    steps = np.split(
        _from_zigzag8(_from_bit_planes(raw[head:], _BITS[wire], count).astype(np.uint8)),
        np.cumsum([_count(shape) for shape in shapes])[:-1],
    )
    return [_sum(r, _dequantized(s, q, r.shape)) for r, s, q in zip(references, scales, steps, strict=True)]


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _split(values: NDArray[T], shapes: list[tuple[int, ...]]) -> list[NDArray[T]]:
    ends = np.cumsum([_count(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(values, ends[:-1]), shapes, strict=True)]


def _sum(reference: Floats, difference: Doubles) -> Floats:
    total = np.clip(reference.astype(np.float64) + difference, -_FLOAT32_MAX, _FLOAT32_MAX)
    return np.asarray(total, np.float32)  # numpy makes scalars of arrays without axes


def _ordered(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Bits of float32 as two's-complement numbers in the order of the values: neighbours in value are neighbours here. Its own inverse."""
    negative = (bits.view(np.int32) >> 31).view(np.uint32)  # all ones, or none
    ordered: NDArray[np.uint32] = bits ^ (negative & np.uint32(0x7FFFFFFF))
    return ordered


def _bit_differences(values: Floats, references: Floats) -> NDArray[np.uint32]:
    """How many float32 numbers lie between two values, modulo 2^32, sign in the lowest bit."""
    steps = (_ordered(values.view(np.uint32)) - _ordered(references.view(np.uint32))).view(np.int32)
    return ((steps << 1) ^ (steps >> 31)).view(np.uint32)


def _from_bit_differences(differences: NDArray[np.uint32], references: Floats) -> Floats:
    steps = (differences >> 1) ^ np.negative(differences & 1)  # modulo 2^32: all ones, or none
    return _ordered(_ordered(references.view(np.uint32)) + steps).view(np.float32)


def _exponent(values: Doubles) -> int:
    """Power of two that brings the largest value to [0.5, 1): float16 cannot overflow, and what is lost below is under 2^-24 of it."""
    return int(np.frexp(np.abs(values).max(initial=0.0))[1])


def _quantized(difference: Doubles, largest_step: int) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    """Scales (rows) and whole steps (values, row after row), up to ``largest_step`` on either side.

    A scale is the upper half of a float32, rounded up; 0 where the row is zero.
    """
    rows = difference.reshape(matrix_of(difference.shape))
    if len(rows) > num_scales(difference.shape):
        rows = rows.T
    largest = np.abs(rows).max(axis=1, initial=0.0)
    widths = (largest / largest_step).astype(np.float32)
    widths = np.where(widths.astype(np.float64) * largest_step < largest, np.nextafter(widths, np.float32(np.inf)), widths)
    scales = ((widths.view(np.uint32) + 0xFFFF) >> 16).astype(np.uint16)
    divisors = _scale_values(scales)[:, None]
    steps = np.rint(np.divide(rows, divisors, where=divisors > 0, out=np.zeros(rows.shape)))
    return scales, steps.astype(np.int8).ravel()


def _dequantized(scales: NDArray[np.uint16], steps: NDArray[np.int8], shape: tuple[int, ...]) -> Doubles:
    rows, columns = matrix_of(shape)
    tall = rows > num_scales(shape)
    values = steps.reshape((columns, rows) if tall else (rows, columns)) * _scale_values(scales)[:, None]
    return (values.T if tall else values).reshape(shape)


def _scale_values(scales: NDArray[np.uint16]) -> Doubles:
    return (scales.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _zigzag8(steps: NDArray[np.int8]) -> Bytes:
    """0, -1, 1, -2, ... become 0, 1, 2, 3, ...: small steps have zeros in their upper bits, whatever their sign."""
    return ((steps << 1) ^ (steps >> 7)).view(np.uint8)


def _from_zigzag8(coded: Bytes) -> NDArray[np.int8]:
    return ((coded >> 1) ^ np.where(coded & 1, 0xFF, 0).astype(np.uint8)).view(np.int8)


def _byte_planes(values: NDArray[np.uint32]) -> bytes:
    planes = np.empty((4, values.size), np.uint8)
    for plane, shift in zip(planes, (24, 16, 8, 0), strict=True):
        plane[:] = (values >> shift) & 0xFF
    return planes.tobytes()


def _from_byte_planes(raw: Bytes) -> NDArray[np.uint32]:
    planes = raw.reshape(4, -1)
    values: NDArray[np.uint32] = planes[0].astype(np.uint32)
    for plane in planes[1:]:
        np.left_shift(values, 8, out=values)
        np.bitwise_or(values, plane, out=values)
    return values


def _plane_bytes(count: int) -> int:
    return -(-count // 8)


def _bit_planes(values: NDArray[np.uint8] | NDArray[np.uint16], bits: int | None = None) -> bytes:
    """All highest of the lowest ``bits`` bits (all, if left out), then all second ones, ...; each plane filled up to whole bytes."""
    width = values.dtype.itemsize
    in_bytes = values.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(-1, width)
    planes = np.unpackbits(in_bytes, axis=1).T[8 * width - (bits or 8 * width) :]
    return np.packbits(planes, axis=1).tobytes()


def _from_bit_planes(raw: Bytes, bits: int, count: int) -> NDArray[np.uint16]:
    planes = np.unpackbits(raw.reshape(bits, -1), axis=1, count=count)
    if bits < 8:
        planes = np.concatenate([np.zeros((8 - bits, count), np.uint8), planes])
    in_bytes = np.ascontiguousarray(np.packbits(planes.T, axis=1))
    return in_bytes.view(">u2").ravel().astype(np.uint16) if bits == 16 else in_bytes.ravel().astype(np.uint16)
