"""``fedsam_doctor`` on a machine: versions, environment, disk, weights, GPU and data."""

import shutil
from pathlib import Path

import pytest

from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.pipeline.doctor_findings import Level
from fedsam_pipeline.pipeline.doctor_machine import (
    FULL_BYTES,
    SCARCE_BYTES,
    data_findings,
    disk_findings,
    environment_findings,
    gpu_findings,
    version_findings,
    weight_findings,
)
from tests.dataset.raw_for_tests import make_textured
from tests.pipeline.doctor_for_tests import SITES, listed, only


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fedsam_raw", "fedsam_preprocessed", "fedsam_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("fedsam_cache", "cache")


def test_versions_outside_their_ranges() -> None:
    requirements = ["flwr[simulation]>=1.41,<1.42", "torch>=2.13,<2.14", "numpy>=2.4", 'pydicom>=3; extra == "dicom"']
    here = {"flwr": "1.42.0", "torch": "2.13.0+cpu", "numpy": None, "fedsam-pipeline": "0.1.0"}
    found = list(version_findings(requirements, here.get))
    assert [(finding.level, finding.text) for finding in found] == [
        (Level.PROBLEM, "flwr 1.42.0, expected <1.42,>=1.41"),
        (Level.PROBLEM, "numpy is not installed, expected >=2.4"),
    ]
    good = list(version_findings(requirements, (here | {"flwr": "1.41.3", "numpy": "2.4.6"}).get))
    assert [finding.level for finding in good] == [Level.OK] and "flwr 1.41.3" in good[0].text


def test_the_versions_of_this_environment_are_fine() -> None:
    assert listed(version_findings()) == [(Level.OK, "versions")]


def test_an_environment_that_calls_home() -> None:
    assert listed(environment_findings({}, "here")) == [(Level.OK, "environment")]
    assert listed(environment_findings({"FLWR_TELEMETRY_ENABLED": "0"}, "here")) == [(Level.OK, "environment")]
    loud = only(environment_findings({"FLWR_TELEMETRY_ENABLED": "1"}, "here"), "environment", Level.WARNING)
    assert "FLWR_TELEMETRY_ENABLED=1" in loud.text and loud.fix and "here" in loud.fix


@pytest.mark.parametrize(
    ("free", "level"),
    [(FULL_BYTES - 1, Level.PROBLEM), (FULL_BYTES, Level.WARNING), (SCARCE_BYTES - 1, Level.WARNING), (SCARCE_BYTES, Level.OK)],
)
def test_a_disk_that_is_nearly_full(free: int, level: Level, tmp_path: Path) -> None:
    asked = []

    def free_bytes(folder: Path) -> int:
        asked.append(folder)
        return free

    assert listed(disk_findings({"results": Path("not/there/yet")}, free_bytes)) == [(level, "disk, results")]
    assert asked == [tmp_path]


def test_a_folder_that_is_a_file_and_a_disk_that_is_gone() -> None:
    Path("results").touch()
    wrong = only(disk_findings({"results": Path("results")}, lambda _: 1 << 40), "disk, results", Level.PROBLEM)
    assert "cannot be written to" in wrong.text

    def gone(_: Path) -> int:
        raise OSError(5, "Input/output error")

    assert "Input/output error" in only(disk_findings({"raw": Path("raw")}, gone), "disk, raw", Level.PROBLEM).text


def test_missing_and_damaged_weights() -> None:
    missing = only(weight_findings("lite_medsam"), "base weights", Level.PROBLEM)
    assert missing.fix and missing.fix.startswith("fedsam_download_weights lite_medsam")
    weights = base_model_spec("lite_medsam").weights
    assert weights is not None
    Path("cache").mkdir()
    (Path("cache") / weights.file_name).write_bytes(b"half a download")
    damaged = only(weight_findings("lite_medsam"), "base weights", Level.PROBLEM)
    assert "fail their hash check" in damaged.text and damaged.fix and "delete the file" in damaged.fix
    assert listed(weight_findings("tiny_random")) == [(Level.OK, "base weights")]


def test_a_driver_without_a_gpu_for_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert listed(gpu_findings()) == [(Level.OK, "GPU")]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert listed(gpu_findings()) == [(Level.WARNING, "GPU")]


def test_a_gpu_and_a_gpu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process holds a GPU for itself, or all its memory, asking for its free memory fails; the next one may answer."""

    def memory(number: int) -> tuple[int, int]:
        if number == 0:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")
        return 3 << 30, 8 << 30

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: f"card {number}")
    monkeypatch.setattr("torch.cuda.mem_get_info", memory)
    assert listed(gpu_findings()) == [(Level.WARNING, "GPU"), (Level.OK, "GPU")]
    busy, free = gpu_findings()
    assert "CUDA error: out of memory" in busy.text and "\n" not in busy.text and busy.fix and "nvidia-smi" in busy.fix
    assert free.text == "card 1, 3.0 of 8.0 GiB free"


# the data


def test_sound_data_and_nothing_written() -> None:
    make_textured(Path("fedsam_data/raw"), sites=SITES)
    before = sorted(Path().rglob("*"))
    assert listed(data_findings(None, "site_a")) == [(Level.OK, "data")]
    assert sorted(Path().rglob("*")) == before


def test_a_damaged_case() -> None:
    folder = make_textured(Path("fedsam_data/raw"), sites=SITES)
    image = folder / "imagesTr" / "a2_0001.nii.gz"
    image.write_bytes(image.read_bytes()[:60])
    found = only(data_findings("7", "site_a"), "data", Level.PROBLEM)
    assert found.text.startswith("a2: ") and "a2_0001.nii.gz" in found.text and found.fix


def test_a_dataset_without_cases_of_this_site() -> None:
    make_textured(Path("fedsam_data/raw"))
    found = only(data_findings(None, "site_a"), "data", Level.PROBLEM)
    assert "cases of a, b, none of site_a" in found.text and found.fix and 'site = "site_a"' in found.fix


def test_no_dataset_is_said_to_be_unchecked_and_a_wrong_number_is_a_problem() -> None:
    assert listed(data_findings(None, None)) == [(Level.UNCHECKED, "data")]
    assert listed(data_findings("3", None)) == [(Level.PROBLEM, "data")]
