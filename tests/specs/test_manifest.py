"""Bytes that a manifest's tensors take on the wire."""

import math

from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.federation.codec.wires import body_size
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry, num_scales

SHAPES = st.lists(st.lists(st.integers(1, 9), max_size=4).map(tuple), min_size=1, max_size=6)


def manifest(shapes: list[tuple[int, ...]], travels: list[bool]) -> Manifest:
    tensors = tuple(
        TensorEntry(name=f"t{number}", shape=shape, dtype="float32", travels="both" if both else "none")
        for number, (shape, both) in enumerate(zip(shapes, travels, strict=True))
    )
    return Manifest(recipe="r", base_model="m", tensors=tensors)


def test_int8_adds_a_scale_for_every_row_and_for_every_column_of_a_tall_matrix() -> None:
    shapes: list[tuple[int, ...]] = [(3, 4), (5, 2, 2, 2), (7,), (), (9, 2)]
    weights = manifest(shapes, len(shapes) * [True])
    assert [num_scales(shape) for shape in shapes] == [3, 5, 1, 1, 2]
    values = 12 + 40 + 7 + 1 + 18
    assert weights.payload_bytes("fp32") == 4 * values
    assert weights.payload_bytes("fp16") == 2 * values
    assert weights.payload_bytes("int8") == values + 2 * (3 + 5 + 1 + 1 + 2)


@given(SHAPES, st.data())
def test_only_what_travels_costs_bytes(shapes: list[tuple[int, ...]], data: st.DataObject) -> None:
    travels = data.draw(st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes)))
    mixed = manifest(shapes, travels)
    sent = [shape for shape, both in zip(shapes, travels, strict=True) if both]
    values = sum(math.prod(shape) for shape in sent)
    assert mixed.payload_bytes("fp32") == 2 * mixed.payload_bytes("fp16") == 4 * values
    assert mixed.payload_bytes("int8") == sum(manifest([shape], [True]).payload_bytes("int8") for shape in sent)


@given(SHAPES)
def test_the_wire_sends_what_the_manifest_counts(shapes: list[tuple[int, ...]]) -> None:
    """The wire fills its planes of bits up to whole bytes: at most 7 bits each of 16 for scales and 8 for values."""
    counted = manifest(shapes, len(shapes) * [True])
    assert body_size("fp32", shapes) == counted.payload_bytes("fp32")
    assert 0 <= body_size("int8", shapes) - counted.payload_bytes("int8") <= 24
    assert 0 <= body_size("int4", shapes) - counted.payload_bytes("int4") <= 20
