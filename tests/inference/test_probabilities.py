"""Files of probabilities: the image's own grid in any orientation, half precision, nothing half-written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsam_pipeline.dataset.volume import Geometry, Volume, to_canonical
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.probabilities import open_probabilities, probabilities_path, write_probabilities
from tests.inference.plans_for_tests import make_plans
from tests.inference.test_export import _geometries, _properties

LABELS = {"background": 0, "anterior": 1, "posterior": 2}


@given(geometry=_geometries(), axis=st.sampled_from([0, 1, 2]), are_logits=st.booleans(), depth=st.integers(1, 4), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_probabilities_lie_where_the_mask_lies(
    tmp_path: Path, geometry: Geometry, axis: int, are_logits: bool, depth: int, data: st.DataObject
) -> None:
    canonical = geometry.canonical().size
    start = tuple(data.draw(st.integers(0, length - 1)) for length in canonical)
    size = tuple(data.draw(st.integers(1, length - first)) for length, first in zip(canonical, start, strict=True))
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32))
    expected = np.zeros((3, *canonical), np.float32)
    expected[0] = 1
    crop = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
    expected[:, *crop] = logits.softmax(dim=0).numpy()
    given_scores = logits.numpy() if are_logits else logits.softmax(dim=0).numpy()
    properties = _properties(geometry, start, size, size, axis)
    path = probabilities_path(tmp_path / "case.nii.gz", "case")
    with write_probabilities(path, properties, LABELS, are_logits=are_logits, depth=depth) as sink:
        mask = export_stream([np.moveaxis(given_scores, 1 + axis, 0)], properties, make_plans(slice_axis=axis), sink)
    assert [file.name for file in tmp_path.iterdir()] == ["case_probabilities.b2nd"]
    found = open_probabilities(path)
    assert (found.geometry, found.labels, found.array.dtype) == (geometry, LABELS, np.float16)
    np.testing.assert_allclose(to_canonical(Volume(found.array[:], geometry)).array, expected, atol=1e-3)
    assert np.array_equal(mask, found.array[:].astype(np.float32).argmax(axis=0))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    geometry = Geometry((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    properties = _properties(geometry, (0, 0, 0), (2, 3, 4), (2, 3, 4), 0)
    with (
        pytest.raises(RuntimeError, match="half-way"),
        write_probabilities(tmp_path / "x_probabilities.b2nd", properties, LABELS, are_logits=True) as sink,
    ):
        sink.add(torch.zeros(3, 3, 4))
        raise RuntimeError("half-way")
    assert not list(tmp_path.iterdir())


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x_probabilities.b2nd"
    with pytest.raises(FedsamError, match="missing"):
        open_probabilities(path)
    path.write_bytes(b"this is no array")
    with pytest.raises(FedsamError, match="cannot be read"):
        open_probabilities(path)
