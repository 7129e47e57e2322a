"""The tiny demo dataset, made once, and a copy of it for every test that wants one."""

import shutil
from pathlib import Path

import pytest

from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from tests.pipeline.comparisons import DirectSimulation, make_planned

NAME = "Dataset001_Demo"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw folder with the dataset; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("raw")
    make_demo_dataset(folder / NAME, size="tiny")
    return folder


@pytest.fixture
def root(tmp_path: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the dataset in ``raw``; the environment names its three folders."""
    shutil.copytree(pristine, tmp_path / "raw")
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"fedsam_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset, planned for the random tiny model; tests only read it."""
    folder = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"fedsam_{name}", str(folder / name))
        make_planned(folder)
    return folder


@pytest.fixture
def workplace(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, empty: its ``results`` take what is trained on the planned dataset, in this process."""
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"fedsam_{name}", str(planned / name))
    monkeypatch.setenv("fedsam_results", str(tmp_path / "results"))
    monkeypatch.setattr("fedsam_pipeline.pipeline.train.simulate", DirectSimulation())
    monkeypatch.chdir(tmp_path)
    return tmp_path
