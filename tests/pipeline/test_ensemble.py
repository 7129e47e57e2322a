"""``fedsam_ensemble`` on real files."""

from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.dataset.volume import Geometry, read_labels, write_labels
from fedsam_pipeline.entrypoints.ensemble import main
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.inference.probabilities import new_array, open_probabilities

FLIPPED = (-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
GRID = Geometry((35, 5, 4), (1.3, 0.9, 1.1), (5.125, -3.7, 2.0), FLIPPED)  # more than one row of cubes
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def _member(
    folder: str, case: str, seed: int, *, labels: dict[str, int] = LABELS, grid: Geometry = GRID, ending: str = ".nii.gz"
) -> np.ndarray:
    """Writes a mask and its probabilities; returns these."""
    values = np.random.default_rng(seed).random((len(labels), *grid.size))
    values = (values / values.sum(axis=0)).astype(np.float16)
    write_labels(Path(folder) / f"{case}{ending}", values.argmax(axis=0), grid)
    new_array(Path(folder) / f"{case}_probabilities.b2nd", grid, labels)[:] = values
    return np.asarray(values, dtype=np.float32)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_the_mask_is_that_of_the_mean_and_lies_where_its_members_lie(ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, case in enumerate(("x", "y")):
        members = [_member(folder, case, 10 * seed + number, ending=ending) for number, folder in enumerate(("a", "b", "c"))]
        expected = np.mean(members, axis=0)
    assert main(["-i", "a", "b", "c", "-o", "out", "--save_probabilities"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 mask(s) written to out"
    mask, mean = read_labels(Path("out") / f"y{ending}"), open_probabilities(Path("out/y_probabilities.b2nd"))
    assert mask.geometry.same_grid(GRID, 1e-3)
    np.testing.assert_allclose(mean.array[:], expected, atol=1e-3)
    ordered = np.sort(expected, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-6
    assert np.array_equal(mask.array[clear], expected.argmax(axis=0)[clear])
    if ending == ".nii.gz":
        assert mask.geometry == read_labels(Path("a/y.nii.gz")).geometry
    assert main(["-i", "out", "a", "-o", "again"]) == 0  # what it writes it can read
    assert not list(Path("again").glob("*.b2nd"))


def test_members_that_do_not_fit_are_named_and_the_others_finish(capsys: pytest.CaptureFixture[str]) -> None:
    moved = Geometry(GRID.size, GRID.spacing, (5.2, -3.7, 2.0), FLIPPED)
    for case in ("w", "x", "y", "z"):
        _member("a", case, 0)
    _member("b", "w", 1)
    _member("b", "x", 1, labels={"background": 0, "organ": 1})
    _member("b", "y", 1, grid=moved)
    _member("b", "z", 1)
    Path("b/z_probabilities.b2nd").write_bytes(b"this is no array")
    assert main(["-i", "a", "b", "-o", "out", "--save_probabilities"]) == 1
    text = capsys.readouterr().out
    assert "3 of 4 cases failed" in text
    for reason in (
        "x: probabilities of different labels",
        "y: probabilities on different grids",
        "z: a file of probabilities cannot be read",
    ):
        assert f"  {reason}" in text
    assert sorted(path.name for path in Path("out").iterdir()) == ["logs", "w.nii.gz", "w_probabilities.b2nd"]


def test_bad_input_stops_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    _member("a", "x", 0)
    _member("b", "x", 0)
    _member("b", "y", 0)
    Path("empty").mkdir()
    for arguments, reason in (
        (["-i", "a", "-o", "out"], "at least two folders"),
        (["-i", "a", "a", "-o", "out"], "at least two folders"),
        (["-i", "a", "b", "-o", "a"], "would overwrite"),
        (["-i", "a", "empty", "-o", "out"], "no probabilities found"),
        (["-i", "a", "b", "-o", "out"], "missing in a: y"),
    ):
        assert main(arguments) == 2
        assert reason in capsys.readouterr().err
    Path("b/y_probabilities.b2nd").unlink()
    Path("a/x.nii.gz").unlink()
    assert main(["-i", "a", "b", "-o", "out"]) == 2
    assert "the mask is missing" in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_names_of_classes_come_along(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, folder in enumerate(("a", "b")):
        _member(folder, "x", seed, ending=".nrrd")
    write_json(Path("a/dataset.json"), {"labels": LABELS, "channel_names": {"0": "CT"}, "sites": {"site_a": ["mueller"]}})
    assert main(["-i", "a", "b", "-o", "out"]) == 0
    found = read_json(Path("out/dataset.json"))
    assert {key: found[key] for key in found if key != "description"} == {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "file_ending": ".nrrd",
    }
    assert b"Segment1_Name:=lesion" in Path("out/x.nrrd").read_bytes()
    write_json(Path("other/dataset.json"), {"labels": {"background": 0, "heart": 1}})
    assert main(["-i", "a", "b", "-o", "other"]) == 2
    assert "another file stands where the labels" in capsys.readouterr().err
    Path("a/x.nrrd").rename("a/x.dcm")  # a prediction with --dicom_seg
    assert main(["-i", "a", "b", "-o", "out"]) == 2
    assert "without --dicom_seg" in capsys.readouterr().err
