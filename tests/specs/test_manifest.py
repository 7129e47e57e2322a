"""Bytes that a manifest's tensors take on the wire."""

import math

from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.specs.manifest import Manifest, TensorEntry

SHAPES = st.lists(st.lists(st.integers(1, 9), max_size=4).map(tuple), min_size=1, max_size=6)


def manifest(shapes: list[tuple[int, ...]], travels: list[bool]) -> Manifest:
    tensors = tuple(
        TensorEntry(name=f"t{number}", shape=shape, dtype="float32", travels="both" if both else "none")
        for number, (shape, both) in enumerate(zip(shapes, travels, strict=True))
    )
    return Manifest(recipe="r", base_model="m", tensors=tensors)


def test_int8_adds_a_scale_for_every_row() -> None:
    weights = manifest([(3, 4), (5, 2, 2, 2), (7,), ()], [True, True, True, True])
    assert [entry.num_rows for entry in weights.tensors] == [3, 5, 1, 1]
    values = 12 + 40 + 7 + 1
    assert weights.payload_bytes("fp32") == 4 * values
    assert weights.payload_bytes("fp16") == 2 * values
    assert weights.payload_bytes("int8") == values + 4 * (3 + 5 + 1 + 1)


@given(SHAPES, st.data())
def test_only_what_travels_costs_bytes(shapes: list[tuple[int, ...]], data: st.DataObject) -> None:
    travels = data.draw(st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes)))
    mixed = manifest(shapes, travels)
    sent = [shape for shape, both in zip(shapes, travels, strict=True) if both]
    values = sum(math.prod(shape) for shape in sent)
    assert mixed.payload_bytes("fp32") == 2 * mixed.payload_bytes("fp16") == 4 * values
    assert mixed.payload_bytes("int8") == sum(manifest([shape], [True]).payload_bytes("int8") for shape in sent)
