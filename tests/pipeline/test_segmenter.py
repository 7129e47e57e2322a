"""``Segmenter``: an array, a file and the command give the same mask; prompts, probabilities, refusals; the example of the docs runs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsam_pipeline
from fedsam_pipeline import Segmenter
from fedsam_pipeline.dataset.volume import Geometry, read_image, read_labels, write_image
from fedsam_pipeline.entrypoints.predict import main
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import write_json
from fedsam_pipeline.inference.inputs import InputCase, find_cases
from fedsam_pipeline.inference.label_names import label_content
from fedsam_pipeline.model import compilation
from fedsam_pipeline.pipeline.mask_files import MaskFiles
from fedsam_pipeline.pipeline.predict_cases import Outputs
from fedsam_pipeline.pipeline.quality_control import QualityControl
from fedsam_pipeline.specs.plans import PromptPlan
from tests.conftest import make_tiny_plans
from tests.pipeline.trained_runs import RUN, write_fold

TURNED = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
GEOMETRY = Geometry((7, 40, 33), (2.0, 1.0, 0.9), (5.0, -30.0, 12.0), TURNED)
PAGE = Path(__file__).parents[2] / "docs" / "predict.md"

pytestmark = pytest.mark.usefixtures("users_folder")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds that take boxes. Tests leave them as they are."""
    folder = tmp_path_factory.mktemp("results") / RUN
    for fold in (0, 1):
        write_fold(folder / f"fold_{fold}", seed=fold, plans=make_tiny_plans(prompts=PromptPlan(mode="box", jitter_mm=1.0, dropout=0.5)))
    return folder


def _write(path: str, seed: int = 0) -> np.ndarray:
    array = np.random.default_rng(seed).normal(100, 5, GEOMETRY.size).astype(np.float32)
    array[2:5, 8:30, 6:25] += 40
    Path(path).parent.mkdir(exist_ok=True)
    write_image(Path(path), array, GEOMETRY)
    return array


def _box(first: tuple[int, ...], last: tuple[int, ...]) -> list[list[float]]:
    """Two corners in mm (x, y, z), LPS, of a box of voxels (z, y, x)."""
    matrix = np.reshape(GEOMETRY.direction, (3, 3))
    ends = (np.array([first, last])[:, ::-1] * GEOMETRY.spacing[::-1]) @ matrix.T + GEOMETRY.origin
    return [[float(place) for place in end] for end in ends]


BOX = _box((2, 8, 6), (4, 29, 24))


def test_a_compiled_encoder_gives_the_same_mask(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")  # traced, but not put into C++
    array = _write("imgs/x_0000.nii.gz")
    plain, compiled = (
        Segmenter(run, folds=["0"], device="cpu", test_time_augmentation=False, compiled=choice).predict_array(array, GEOMETRY.spacing)
        for choice in (False, True)
    )
    assert np.array_equal(compiled.mask, plain.mask)


def test_an_array_a_file_and_the_command_give_the_same_mask(run: Path) -> None:
    array = _write("imgs/x_0000.nii.gz")
    before = array.copy()
    segmenter = Segmenter(run, device="cpu")
    of_array = segmenter.predict_array(array, GEOMETRY.spacing, origin=GEOMETRY.origin, direction=TURNED, probabilities=True)
    of_channel = segmenter.predict_array(array[None], GEOMETRY.spacing, origin=GEOMETRY.origin, direction=TURNED)
    of_file = segmenter.predict_image("imgs/x_0000.nii.gz", "mask.nii.gz", probabilities=True)
    assert main(["-i", "imgs", "-o", "masks", "-m", str(run), "-device", "cpu", "--save_probabilities"]) == 0
    expected = read_labels(Path("masks/x.nii.gz"))
    assert set(np.unique(expected.array)) >= {0, 1}
    for found in (of_array.mask, of_channel.mask, of_file.mask, read_labels(Path("mask.nii.gz")).array):
        np.testing.assert_array_equal(found, expected.array)
    np.testing.assert_array_equal(array, before)
    assert Path("mask.nii.gz").read_bytes() == Path("masks/x.nii.gz").read_bytes()
    assert of_array.geometry == GEOMETRY and of_file.geometry.same_grid(expected.geometry)
    assert of_array.labels == {"background": 0, "organ": 1, "lesion": 2}
    assert of_channel.probabilities is None and of_array.probabilities is not None
    assert of_array.probabilities.shape == (3, *GEOMETRY.size)
    np.testing.assert_allclose(of_array.probabilities.astype(np.float32).sum(axis=0), 1, atol=3e-3)
    assert (of_array.probabilities.argmax(axis=0) == of_array.mask).mean() > 0.98


def test_prompts_of_an_array_and_of_a_file_of_prompts_do_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = _write("imgs/x_0000.nii.gz")
    _write("imgs/y_0000.nii.gz", seed=1)
    segmenter = Segmenter(run, folds=["0"], device="cpu")
    free = segmenter.predict_array(array, GEOMETRY.spacing, origin=GEOMETRY.origin, direction=TURNED)
    prompts = {"lesion": {"boxes": [BOX]}}
    prompted = segmenter.predict_array(array, GEOMETRY.spacing, origin=GEOMETRY.origin, direction=TURNED, prompts=prompts)
    changed = np.flatnonzero((free.mask != prompted.mask).any(axis=(0, 2)))  # the patient's z axis is the array's axis 1
    assert changed.size and changed.min() >= 8 and changed.max() <= 29
    ras = {"lesion": {"boxes": [[[-x, -y, z] for x, y, z in BOX]]}}
    write_json(Path("prompts.json"), {"schema_version": 1, "coordinates": "RAS", "cases": {"x": ras}})
    command = ["-i", "imgs", "-o", "masks", "-m", str(run), "-f", "0", "-device", "cpu"]
    assert main([*command, "--prompts", "prompts.json"]) == 0
    assert "prompts for 1 of 2 image(s)" in capsys.readouterr().out
    np.testing.assert_array_equal(read_labels(Path("masks/x.nii.gz")).array, prompted.mask)
    other = segmenter.predict_image(Path("imgs/y_0000.nii.gz"))
    np.testing.assert_array_equal(read_labels(Path("masks/y.nii.gz")).array, other.mask)
    assert main([*command, "--continue_prediction"]) == 2
    assert "prompts_sha256" in capsys.readouterr().err
    assert main([*command, "--continue_prediction", "--prompts", "prompts.json"]) == 0
    assert "nothing to predict" in capsys.readouterr().out
    assert main([*command, "--continue_prediction", "--prompts", "prompts.json", "--self_prompt"]) == 2
    assert "self_prompt" in capsys.readouterr().err


def test_one_image_of_a_file_of_many_prompts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write("x_0000.nii.gz")
    cases: dict[str, Any] = {"x": {"organ": {"boxes": [BOX]}}, "another": {"organ": {"boxes": [BOX]}}}
    write_json(Path("prompts.json"), {"coordinates": "LPS", "cases": cases})
    command = ["-i", "x_0000.nii.gz", "-m", str(run), "-f", "1", "-device", "cpu", "--prompts", "prompts.json"]
    assert main([*command, "-o", "mask.nii.gz"]) == 0
    del cases["x"]
    write_json(Path("prompts.json"), {"coordinates": "LPS", "cases": cases})
    assert main([*command, "-o", "mask.nii.gz"]) == 2
    assert "cases: nothing for x" in capsys.readouterr().err


def test_a_case_whose_prompts_lie_elsewhere_fails_and_the_others_finish(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, case in enumerate("xy"):
        _write(f"imgs/{case}_0000.nii.gz", seed)
    away = {"organ": {"boxes": [[[900, 0, 0], [910, 5, 5]]]}}
    write_json(Path("prompts.json"), {"coordinates": "LPS", "cases": {"x": away}})
    assert main(["-i", "imgs", "-o", "masks", "-m", str(run), "-f", "0", "-device", "cpu", "--prompts", "prompts.json"]) == 1
    assert "organ.boxes.0 lies outside the image" in capsys.readouterr().out
    assert [path.name for path in sorted(Path("masks").glob("*.nii.gz"))] == ["y.nii.gz"]


def test_self_prompting_takes_two_passes_and_changes_the_mask(run: Path) -> None:
    array = _write("imgs/x_0000.nii.gz")
    once = Segmenter(run, device="cpu").predict_array(array, GEOMETRY.spacing)
    twice = Segmenter(run, device="cpu", self_prompt=True).predict_array(array, GEOMETRY.spacing)
    assert once.mask.any() and not np.array_equal(once.mask, twice.mask)


def test_a_plan_may_say_that_its_model_prompts_itself(run: Path, tmp_path: Path) -> None:
    planned = PromptPlan(mode="box", jitter_mm=1.0, dropout=0.5, self_prompt=True)
    fold = write_fold(tmp_path / "planned" / "fold_0", seed=0, plans=make_tiny_plans(prompts=planned))
    _write("imgs/x_0000.nii.gz")
    asked = Segmenter(run, folds=["0"], device="cpu", self_prompt=True).predict_image("imgs/x_0000.nii.gz")
    found = Segmenter(fold, device="cpu").predict_image("imgs/x_0000.nii.gz")
    np.testing.assert_array_equal(found.mask, asked.mask)
    assert main(["-i", "imgs", "-o", "once", "-m", str(fold), "-device", "cpu", "--no-self_prompt"]) == 0
    once = Segmenter(run, folds=["0"], device="cpu").predict_image("imgs/x_0000.nii.gz")
    np.testing.assert_array_equal(read_labels(Path("once/x.nii.gz")).array, once.mask)


def test_a_model_without_prompts_refuses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold = write_fold(tmp_path / "run" / "fold_0")
    array = _write("imgs/x_0000.nii.gz")
    write_json(Path("prompts.json"), {"coordinates": "LPS", "cases": {"x": {"organ": {"boxes": [BOX]}}}})
    for flags in (["--self_prompt"], ["--prompts", "prompts.json"]):
        assert main(["-i", "imgs", "-o", "masks", "-m", str(fold), "-device", "cpu", *flags]) == 2
        assert "trained without prompts" in capsys.readouterr().err
    assert not Path("masks").exists()
    with pytest.raises(FedsamError, match="trained without prompts"):
        Segmenter(fold, device="cpu").predict_array(array, (1, 1, 1), prompts={"organ": {"boxes": [BOX]}})


def test_what_is_no_image_and_what_is_no_prompt_are_refused(run: Path) -> None:
    segmenter = Segmenter(run, folds=["0"], device="cpu")
    array = np.random.default_rng(0).normal(size=(3, 30, 30))
    with pytest.raises(ValueError, match=r"\(Z, Y, X\)"):
        segmenter.predict_array(array[0], (1, 1, 1))
    with pytest.raises(ValueError, match="spacing"):
        segmenter.predict_array(array, (1, 0, 1))
    with pytest.raises(ValueError, match="direction"):
        segmenter.predict_array(array, (1, 1, 1), direction=(1, 0, 0, 0.5, 1, 0, 0, 0, 1))
    with pytest.raises(FedsamError, match="wrong number of channels"):
        segmenter.predict_array(np.stack([array, array]), (1, 1, 1))
    with pytest.raises(FedsamError, match="not finite"):
        segmenter.predict_array(np.where(array > 2, np.nan, array), (1, 1, 1))
    with pytest.raises(FedsamError, match=r"orga: no such class, did you mean organ"):
        segmenter.predict_array(array, (1, 1, 1), prompts={"orga": {"boxes": [[[0, 0, 0], [1, 1, 1]]]}})
    with pytest.raises(FedsamError, match=r"organ\.boxes"):
        segmenter.predict_array(array, (1, 1, 1), prompts={"organ": {"boxes": [[0, 0, 0]]}})
    _write("x.nii.gz")
    with pytest.raises(FedsamError, match="overwrite its image"):
        segmenter.predict_image("x.nii.gz", "x.nii.gz")
    assert read_image([Path("x.nii.gz")]).geometry.same_grid(GEOMETRY)


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    code = "import sys, fedsam_pipeline; print('torch' in sys.modules, 'numpy' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = fedsam_pipeline.Segmentor


def test_the_example_of_the_docs_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python$(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    _write("imgs/case_0000.nii.gz")
    Path("model").symlink_to(run)
    exec(compile(example, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    assert "(8, 40, 36)" in printed and "(3, 8, 40, 36)" in printed
    assert read_labels(Path("mask.nii.gz")).geometry.same_grid(GEOMETRY)


def test_an_interrupted_call_leaves_nothing_to_the_next(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image that was read ahead must not become another case's."""
    for seed, name in enumerate(("a", "b", "c")):
        _write(f"imgs/{name}_0000.nii.gz", seed)
    segmenter = Segmenter(run, device="cpu", test_time_augmentation=False)
    expected = segmenter.predict_image("imgs/c_0000.nii.gz").mask

    def outputs(cases: list[InputCase]) -> Outputs:
        masks = MaskFiles(segmenter.plans, label_content(segmenter.folds[0], segmenter.plans), segmenter.record(), cases, Path("masks"))
        return Outputs(masks, QualityControl(segmenter.plans, None, keeps_rows=False))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    cases = find_cases(Path("imgs"), Path("masks"), ["MRI"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fedsam_pipeline.pipeline.predict_cases.export_stream", interrupted)
        segmenter.predict_cases(cases[:2], outputs(cases))
    assert segmenter.predict_cases(cases[2:], outputs(cases)) == {}
    np.testing.assert_array_equal(read_labels(Path("masks/c.nii.gz")).array, expected)
