"""Views: every voxel of the stored volume lies where the plan with another slice axis would have stored it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.preprocessing.slabs import read_slab
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.preprocessing.views import AS_STORED, turned, views
from tests.inference.plans_for_tests import make_plans
from tests.training.stores import SHAPE, write_store

ORDERS = st.permutations((0, 1, 2)).map(tuple)


@given(axis=st.integers(0, 2), size=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)))
def test_a_view_is_what_a_plan_with_its_axis_would_store(axis: int, size: tuple[int, int, int]) -> None:
    canonical = np.arange(np.prod(size), dtype=np.float32).reshape(size)
    stored = np.moveaxis(canonical, axis, 0)
    found = views(make_plans(slice_axis=axis), "triplanar")
    assert sorted(view.plans.slice_axis for view in found) == [0, 1, 2]
    for view in found:
        volume = view.volume(stored[None])
        expected = np.moveaxis(canonical, view.plans.slice_axis, 0)
        assert volume.shape == (1, *expected.shape)
        assert np.array_equal(volume[:, :, :, :][0], expected)
        voxels = np.argwhere(np.ones(stored.shape, bool)).astype(np.int32)
        assert np.array_equal(expected[tuple(view.voxels(voxels).T)], stored[tuple(voxels.T)])


def test_main_is_the_plan_itself_and_triplanar_ends_with_it() -> None:
    plans = make_plans(slice_axis=1)
    (own,) = views(plans, "main")
    assert own == views(plans, "triplanar")[-1]
    assert own.plans is plans and own.order == AS_STORED
    volume = np.zeros((1, 2, 3, 4), np.float32)
    assert own.volume(volume) is volume


def test_isotropic_views_keep_the_window_and_all_that_decides_the_model() -> None:
    plans = make_plans(target_spacing=(1.0, 1.0, 1.0))
    for view in views(plans, "triplanar"):
        changed = {key for key, value in view.plans.to_dict().items() if value != plans.to_dict()[key]}
        assert changed <= {"slice_axis", "training"}
        assert view.plans.training.model_copy(update={"mirror_axes": plans.training.mirror_axes}) == plans.training


@pytest.mark.parametrize(
    ("axis", "window", "expected"),
    [
        (0, (12, 30), {1: (8, 30), 2: (20, 12)}),  # z, 1.5 mm, takes over y's 12 mm, or x's 30 mm
        (2, (12, 30), {0: (30, 18), 1: (12, 30)}),  # stored (x, z, y): x takes over z's 18 mm, or y's 30 mm
    ],
)
def test_the_window_of_a_view_has_the_extent_in_mm_of_the_plans(
    axis: int, window: tuple[int, int], expected: dict[int, tuple[int, int]]
) -> None:
    found = views(make_plans(slice_axis=axis, target_spacing=(1.5, 1.0, 1.0), window=window), "triplanar")
    assert {view.plans.slice_axis: view.plans.window for view in found} == expected | {axis: window}


def test_views_mirror_along_the_same_directions_of_the_patient() -> None:
    plans = make_plans(slice_axis=1, training=make_plans().training.model_dump() | {"mirror_axes": (0, 2)})  # stored (y, z, x): y and x
    found = {view.plans.slice_axis: view for view in views(plans, "triplanar")}
    assert {axis: view.plans.training.mirror_axes for axis, view in found.items()} == {0: (1, 2), 1: (0, 2), 2: (0, 2)}
    assert {axis: view.axes((2,)) for axis, view in found.items()} == {0: (2,), 1: (2,), 2: (0,)}


@given(
    order=ORDERS,
    start=st.tuples(st.integers(-2, 6), st.integers(-30, 30), st.integers(-30, 30)),
    window=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    margin=st.integers(0, 2),
)
def test_slabs_of_a_view_of_a_stored_case_equal_those_of_the_turned_array(
    order: Any, start: tuple[int, int, int], window: tuple[int, int], margin: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = _case(tmp_path_factory)
    for stored, leading in ((case.image, (0,)), (case.labels, ())):
        axes = [len(leading) + axis for axis in order]
        expected = np.ascontiguousarray(stored[:].transpose(*leading, *axes))
        lazily, whole = (
            read_slab(volume, start[0], 2, margin, origin=start[1:], window=window) for volume in (turned(stored, order), expected)
        )
        assert torch.equal(lazily, whole)


_STORE: list[Path] = []


def _case(factory: pytest.TempPathFactory) -> Any:
    """Written once for all examples."""
    if not _STORE:
        _STORE.append(factory.mktemp("store"))
        write_store(_STORE[0], ["case"])
    return CaseStore(_STORE[0]).open("case")


def test_nothing_is_read_but_what_is_asked_for() -> None:
    asked = []

    class Recording:
        shape = (1, *SHAPE)

        def __getitem__(self, key: Any, /) -> np.ndarray:
            asked.append(key)
            return np.asarray(np.zeros(self.shape, np.float32)[key])

    read_slab(turned(Recording(), (2, 0, 1)), 3, 2, 1, origin=(0, 4), window=(4, 8))
    assert asked == [(slice(None), slice(0, 4), slice(4, 12), slice(2, 6))]
