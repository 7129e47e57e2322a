"""Scores on disk: sums in half precision, and no file left behind."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.score_map import ScoreMap


def test_slices_are_added_up(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    parts = generator.random((3, 5, 2, 4, 3), dtype=np.float32) / 3
    with ScoreMap((5, 2, 4, 3), tmp_path) as total:
        assert not total.read(0, 5).any()
        for part in parts:
            total.add(0, part[:2])
            total.add(2, part[2:])
        np.testing.assert_allclose(total.read(0, 5), parts.sum(axis=0), atol=3 / 4096)
        assert np.array_equal(total.read(3, 1), total.read(0, 5)[3:4])
        with pytest.raises(EOFError, match="slices 4 to 5 of 5"):
            total.read(4, 2)


@given(
    size=st.tuples(st.integers(1, 37), st.integers(1, 37), st.integers(1, 37)),
    depth=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_along_any_axis_are_added_up(size: tuple[int, int, int], depth: int, seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    expected = np.zeros((size[0], 2, *size[1:]), np.float32)
    with ScoreMap(expected.shape, tmp_path, cubes=True) as total:
        for order in ((1, 0, 2), (2, 1, 0), (2, 0, 1), (0, 1, 2)):
            whole = generator.random((size[0], 2, *size[1:]), dtype=np.float32) * np.float32(0.25)
            expected += whole
            axes = [(0, 2, 3)[axis] for axis in order]
            along = whole.transpose(axes[0], 1, axes[1], axes[2])
            for first in range(0, len(along), depth):
                total.add(first, along[first : first + depth], order)
        parts = [total.read(first, min(depth, size[0] - first)) for first in range(0, size[0], depth)]
        np.testing.assert_allclose(np.concatenate(parts), expected, atol=4 / 4096)
        with pytest.raises(EOFError, match="are not in the map"):
            total.read(size[0], 1)


def test_the_file_has_no_name_even_while_it_is_used(tmp_path: Path) -> None:
    with ScoreMap((5, 2, 4, 3), tmp_path / "masks"):
        assert not list((tmp_path / "masks").iterdir())


def test_a_disk_without_the_space_is_an_error_before_the_work(tmp_path: Path) -> None:
    slices = shutil.disk_usage(tmp_path).free // 2 + 1
    with pytest.raises(FedsamError, match="no space for the probabilities") as caught:
        ScoreMap((slices, 1, 1, 1), tmp_path)
    assert "-f 0" in str(caught.value)
