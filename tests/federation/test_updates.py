"""What another machine sends is let in only as the manifest says."""

import numpy as np
import pytest
import torch

from fedsam_pipeline.federation.updates import UpdateRefused, checked_tensors
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry

MANIFEST = Manifest(
    recipe="r",
    base_model="b",
    tensors=(
        TensorEntry(name="a", shape=(2, 2), dtype="float32", travels="both"),
        TensorEntry(name="local", shape=(1,), dtype="float32", travels="none"),
    ),
)
GOOD = np.ones((2, 2), np.float32)


def test_a_good_update_passes_as_a_copy() -> None:
    source = GOOD.copy()
    tensors = checked_tensors(MANIFEST, {"a": source})
    source[:] = 9
    assert torch.equal(tensors["a"], torch.ones(2, 2))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "0 unknown and 1 missing"),
        ({"a": GOOD, "b": GOOD}, "1 unknown and 0 missing"),
        ({"a": GOOD, "local": np.ones(1, np.float32)}, "1 unknown"),
        ({"a": GOOD[:1]}, r"expected float32 \(2, 2\)"),
        ({"a": GOOD.astype(np.float64)}, "found float64"),
        ({"a": np.array([[1, np.nan], [0, 0]], np.float32)}, "NaN or infinite"),
        ({"a": np.array([[1, np.inf], [0, 0]], np.float32)}, "NaN or infinite"),
    ],
)
def test_anything_else_is_refused(arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(UpdateRefused, match=words):
        checked_tensors(MANIFEST, arrays)
