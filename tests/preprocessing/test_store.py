"""The store: what is written comes back, lazily; unfinished cases do not count; broken ones are named."""

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from numpy.typing import NDArray

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.preprocessing import store as store_module
from fedsam_pipeline.preprocessing.preprocess import foreground_locations
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.specs.case import CaseProperties
from tests.conftest import make_tiny_plans

SIGNED = {"preprocessing_sha256": "p", "inputs_sha256": "i"}


def properties(case: str, size: tuple[int, int, int]) -> CaseProperties:
    return CaseProperties(
        case=case,
        original_size=size,
        original_spacing=(1.0, 1.0, 1.0),
        original_origin=(0.0, 0.0, 0.0),
        original_direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        canonical_size=size,
        crop_start=(0, 0, 0),
        crop_size=size,
        resampled_size=size,
        slice_axis=0,
    )


def arrays(shape: tuple[int, int, int, int] = (2, 9, 11, 13), dtype: Any = np.int8) -> tuple[NDArray[np.float32], NDArray[Any]]:
    generator = np.random.default_rng(0)
    return generator.normal(size=shape).astype(np.float32), generator.integers(0, 3, shape[1:]).astype(dtype)


def written(folder: Path, case: str = "case_a", **signatures: str) -> CaseStore:
    image, labels = arrays()
    store = CaseStore(folder)
    store.write(case, image, labels, properties(case, (9, 11, 13)), foreground_locations(labels, case), None, **signatures)
    return store


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize("chunk_bytes", [1, 4000, 1 << 18])
def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, chunk_bytes: int) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", chunk_bytes)
    image, labels = arrays(dtype=dtype)
    locations = foreground_locations(labels, "a")
    store = CaseStore(tmp_path / "store")
    store.write("a", image, labels, properties("a", (9, 11, 13)), locations, np.argwhere(labels == 0)[::-1])
    case = store.open("a")
    np.testing.assert_array_equal(case.image[:], image)
    np.testing.assert_array_equal(case.labels[:], labels)
    assert case.labels.dtype == dtype
    np.testing.assert_array_equal(case.image[:, 3:6, 2:5, 1:4], image[:, 3:6, 2:5, 1:4])
    assert case.properties == properties("a", (9, 11, 13))
    assert sorted(case.foreground) == [1, 2]
    for label, voxels in case.foreground.items():
        np.testing.assert_array_equal(voxels, locations[label])
        assert voxels.dtype == np.int32
    np.testing.assert_array_equal(case.annotated, np.argwhere(labels == 0))
    assert written(tmp_path).open("case_a").annotated.shape == (0, 3)


def test_cases_are_sorted_and_only_the_finished_count(tmp_path: Path) -> None:
    store = written(tmp_path, "b")
    written(tmp_path, "a")
    assert store.cases() == ("a", "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b2nd", "a.json", "a_seg.b2nd", "b.b2nd", "b.json", "b_seg.b2nd"]
    assert CaseStore(tmp_path / "nowhere").cases() == ()


def test_an_interrupted_rewrite_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = written(tmp_path, **SIGNED)
    assert store.is_done("case_a", **SIGNED)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(blosc2, "asarray", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, **SIGNED)
    assert not store.is_done("case_a", **SIGNED)
    assert store.cases() == ()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_case_is_done_for_its_own_plan_and_files_only(tmp_path: Path) -> None:
    store = written(tmp_path, **SIGNED)
    assert not store.is_done("case_a", preprocessing_sha256="p", inputs_sha256="other")
    assert not store.is_done("case_a", preprocessing_sha256="other", inputs_sha256="i")
    assert not store.is_done("case_b", **SIGNED)
    (tmp_path / "case_a_seg.b2nd").unlink()
    assert not store.is_done("case_a", **SIGNED)


def test_a_missing_case(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="a case is not in the preprocessed store") as caught:
        written(tmp_path).open("case_z")
    assert "fedsam_plan_and_preprocess" in str(caught.value)


def test_a_broken_record(tmp_path: Path) -> None:
    store = written(tmp_path)
    (tmp_path / "case_a.json").write_text('{"shape": 3}')
    with pytest.raises(FedsamError, match="not a valid CaseRecord document"):
        store.open("case_a")


def test_a_broken_array(tmp_path: Path) -> None:
    case = written(tmp_path).open("case_a")
    (tmp_path / "case_a.b2nd").write_bytes(b"no array")
    with pytest.raises(FedsamError, match="an array of the preprocessed store cannot be read"):
        _ = case.image
    (tmp_path / "case_a_seg.b2nd").unlink()
    with pytest.raises(FedsamError, match="an array of the preprocessed store cannot be read"):
        _ = case.labels


def test_an_array_of_another_case(tmp_path: Path) -> None:
    store = written(tmp_path)
    image, labels = arrays((1, 4, 4, 4))
    store.write("other", image, labels, properties("other", (4, 4, 4)), {})
    (tmp_path / "other.b2nd").replace(tmp_path / "case_a.b2nd")
    with pytest.raises(FedsamError, match="has the wrong shape"):
        _ = store.open("case_a").image


def test_misuse(tmp_path: Path) -> None:
    image, labels = arrays()
    store = CaseStore(tmp_path)
    with pytest.raises(ValueError, match="case a: image"):
        store.write("a", image, labels[1:], properties("a", (9, 11, 13)), {})
    with pytest.raises(ValueError, match="labels dtype int64"):
        store.write("a", image, labels.astype(np.int64), properties("a", (9, 11, 13)), {})


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(FedsamError, match="cannot write a file"):
        written(tmp_path / "store")


def test_a_case_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(FedsamError, match="a preprocessed case cannot be replaced"):
        written(tmp_path)


def test_the_folder_carries_the_plans_signature(tmp_path: Path) -> None:
    plans = make_tiny_plans()
    assert store_folder(tmp_path, plans) == tmp_path / f"store_{plans.preprocessing_sha256()[:8]}"
    assert store_folder(tmp_path, make_tiny_plans(slice_axis=1)) != store_folder(tmp_path, plans)
