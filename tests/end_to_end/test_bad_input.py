"""Bad input at the commands: one clear error, exit code 2, nothing half-written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.dataset.volume import read_labels, write_image, write_labels
from fedsam_pipeline.entrypoints import download_weights, evaluate, plan_and_preprocess, predict, train_federated
from fedsam_pipeline.errors import EXIT_USER_INPUT

Damage = Callable[[Path], None]


@pytest.fixture
def folders(users_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with no variable of ours set but the cache."""
    monkeypatch.setenv("fedsam_cache", str(users_folder / "cache"))
    return users_folder


def raw_dataset() -> Path:
    folder = Path("fedsam_data/raw/Dataset001_Demo")
    make_demo_dataset(folder, size="tiny")
    return folder


def case_of(raw: Path, index: int = 0) -> str:
    return sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir())[index]


def image_of(raw: Path) -> Path:
    return raw / "imagesTr" / f"{case_of(raw)}_0000.nii.gz"


def label_of(raw: Path) -> Path:
    return raw / "labelsTr" / f"{case_of(raw)}.nii.gz"


def edit(raw: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = raw / "dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def no_label(raw: Path) -> None:
    label_of(raw).unlink()


def unknown_value(raw: Path) -> None:
    volume = read_labels(label_of(raw))
    labels = volume.array.copy()
    labels[0, 0, 0] = 7
    write_labels(label_of(raw), labels, volume.geometry)


def other_shape(raw: Path) -> None:
    image = SimpleITK.ReadImage(str(label_of(raw)))
    SimpleITK.WriteImage(image[:-1], str(label_of(raw)))


def other_spacing(raw: Path) -> None:
    image: Any = SimpleITK.ReadImage(str(label_of(raw)))
    image.SetSpacing([2 * length for length in image.GetSpacing()])
    SimpleITK.WriteImage(image, str(label_of(raw)))


def nan_image(raw: Path) -> None:
    volume = read_labels(label_of(raw))
    array = np.ones(volume.geometry.size, np.float32)
    array[1, 1, 1] = np.nan
    write_image(image_of(raw), array, volume.geometry)


def two_sites(raw: Path) -> None:
    edit(raw, lambda content: content["sites"]["site_b"].append(content["sites"]["site_a"][0]))


def empty_site(raw: Path) -> None:
    edit(raw, lambda content: content["sites"].update(site_z=[]))


def unreadable(raw: Path) -> None:
    image_of(raw).write_bytes(b"this is no image")


def wrong_channels(raw: Path) -> None:
    edit(raw, lambda content: content.update(channel_names={"0": "T1", "1": "T2"}))


def no_dataset_json(raw: Path) -> None:
    (raw / "dataset.json").write_text("{")


BROKEN: list[tuple[Damage, tuple[str, ...]]] = [
    (no_label, ("label", "labelsTr")),
    (unknown_value, ("7", "dataset.json")),
    (other_shape, ("grid",)),
    (other_spacing, ("grid",)),
    (nan_image, ("NaN",)),
    (two_sites, ("site_a", "site_b")),
    (empty_site, ("site_z",)),
    (unreadable, ("imagesTr",)),
    (wrong_channels, ("channel",)),
    (no_dataset_json, ("dataset.json", "JSON")),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_dataset(damage: Damage, words: tuple[str, ...], folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = raw_dataset()
    damage(raw)
    assert plan_and_preprocess.main(["-d", "1", "-m", "tiny_random", "-np", "1"]) == EXIT_USER_INPUT
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    assert all(word in error for word in words), error
    left = [path for path in (folders / "fedsam_data").rglob("*") if path.is_file() and raw.resolve() not in path.resolve().parents]
    planned = {path.name for path in left if "preprocessed" in path.parts and path.suffix != ".log"}
    assert planned <= {"integrity.json"}, planned
    assert not [path for path in left if path.name.startswith(".tmp-") or path.name == "plans.json"]


def test_a_missing_dataset(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main, argv in (
        (plan_and_preprocess.main, ["-d", "9"]),
        (train_federated.main, []),
        (predict.main, ["-i", str(folders), "-o", "masks"]),
    ):
        assert main(argv) == EXIT_USER_INPUT
        error = capsys.readouterr().err
        assert error.count("error: ") == 1
        assert "fix:" in error


def test_several_datasets_and_no_number(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_dataset()
    make_demo_dataset(Path("fedsam_data/raw/Dataset002_Other"), size="tiny")
    assert plan_and_preprocess.main([]) == EXIT_USER_INPUT
    error = capsys.readouterr().err
    assert "Dataset001_Demo, Dataset002_Other" in error
    assert "-d" in error


def test_an_output_folder_that_cannot_be_written(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw_dataset()
    (folders / "a_file").write_text("no folder")
    monkeypatch.setenv("fedsam_preprocessed", str(folders / "a_file"))
    assert plan_and_preprocess.main(["-d", "1", "-m", "tiny_random"]) == EXIT_USER_INPUT
    error = capsys.readouterr().err
    assert "cannot write" in error
    assert "a_file" in error


def test_weights_that_fail_their_hash(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "lite.pth").write_bytes(b"not the weights")
    assert download_weights.main(["lite_medsam", "--from", "lite.pth"]) == EXIT_USER_INPUT
    error = capsys.readouterr().err
    assert "hash" in error
    assert not list((folders / "cache").iterdir())


def test_missing_weights_name_the_command(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_dataset()
    assert plan_and_preprocess.main(["-d", "1"]) == 0
    capsys.readouterr()
    assert train_federated.main([]) == EXIT_USER_INPUT
    assert "fedsam_download_weights lite_medsam" in capsys.readouterr().err
    assert not Path("fedsam_data/results").exists()


def test_evaluating_against_nothing(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["nowhere", "nothing"]) == EXIT_USER_INPUT
    assert capsys.readouterr().err.count("error: ") == 1
