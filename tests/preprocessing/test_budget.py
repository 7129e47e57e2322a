"""Workers by cores, memory and work."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.dataset.volume import write_image
from fedsam_pipeline.preprocessing import budget


@given(voxels=st.integers(1, 10**9), channels=st.integers(1, 4), free=st.integers(0, 10**12))
def test_the_workers_fit_unless_there_is_one(voxels: int, channels: int, free: int) -> None:
    count = budget.processes_that_fit(voxels, channels, free)
    assert count >= 1
    assert count == 1 or count * budget.case_memory(voxels, channels) <= free * budget.USABLE_SHARE
    assert (count + 1) * budget.case_memory(voxels, channels) > int(free * budget.USABLE_SHARE)


def test_free_memory_is_a_number_of_bytes() -> None:
    assert budget.free_memory() > 1 << 20


def test_the_largest_volume_comes_from_the_headers(tmp_path: Path) -> None:
    for name, size in (("small", (2, 3, 4)), ("large", (5, 6, 7))):
        geometry = Geometry(size, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
        write_image(tmp_path / f"{name}.nii.gz", np.zeros(size, dtype=np.float32), geometry)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    assert budget.largest_volume([*sorted(tmp_path.iterdir()), tmp_path / "missing.nii.gz"]) == 5 * 6 * 7
    assert budget.largest_volume([broken]) == 0


def test_cores_memory_and_work_each_limit_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_demo_dataset(tmp_path / "Dataset001_Demo", size="tiny")
    assert budget.default_processes(dataset) == 1  # a few small images: no worker pays off
    monkeypatch.setattr(budget, "BYTES_PER_PROCESS", 1)
    monkeypatch.setattr(budget, "usable_cores", lambda: 64)
    monkeypatch.setattr(budget, "free_memory", lambda: 1 << 40)
    assert budget.default_processes(dataset) == budget.MAX_PROCESSES
    monkeypatch.setattr(budget, "free_memory", lambda: int(2.5 * (400 << 20) / budget.USABLE_SHARE))
    assert budget.default_processes(dataset) == 2
