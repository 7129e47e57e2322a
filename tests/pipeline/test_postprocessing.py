"""Postprocessing as ``fedsam_predict`` and ``fedsam_ensemble`` apply it, and what they refuse."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.dataset.volume import Geometry, Volume, read_labels, write_image
from fedsam_pipeline.entrypoints.ensemble import main as ensemble
from fedsam_pipeline.entrypoints.predict import main as predict
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.probabilities import open_probabilities
from fedsam_pipeline.pipeline.export_model import export_model
from fedsam_pipeline.pipeline.import_model import import_model
from fedsam_pipeline.postprocessing.apply import apply_rules
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.postprocessing import Decision, MaskRule, Postprocessing, SummedDelta
from tests.conftest import make_tiny_plans
from tests.pipeline.trained_runs import write_fold

TURN = np.deg2rad(20.0)
OBLIQUE = (np.cos(TURN), -np.sin(TURN), 0.0, 0.0, 0.0, 1.0, -np.sin(TURN), -np.cos(TURN), 0.0)  # not canonical, flipped and turned
GRID = Geometry((9, 26, 22), (2.0, 1.1, 0.9), (-31.5, 12.25, 8.0), tuple(float(number) for number in OBLIQUE))
STEPS = (
    MaskRule(kind="minimum_volume", label="lesion", min_volume_mm3=30.0),
    MaskRule(kind="largest_component", label="organ"),
    MaskRule(kind="fill_holes", label="organ"),
)
PLANS = make_tiny_plans(target_spacing=(1.3, 1.0, 1.6), training={"mirror_axes": (2,)})
RUN = Path("fedsam_data/results/Dataset001_Demo/flap_sam__plans__main/federated__fedavg__seed0")


def choose(run: Path, *steps: MaskRule, plans: Plans = PLANS, num_cases: int = 6) -> None:
    decisions = tuple(
        Decision(rule=rule, kept=True, mean_delta=0.1, classes={"organ": SummedDelta(delta_sum=0.1, num_cases=num_cases)}, why="it gains")
        for rule in steps
    )
    Postprocessing(dataset_name=plans.dataset_name, plan_sha256=plans.sha256(), steps=steps, decisions=decisions).save(
        run / "postprocessing.json"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds whose masks are noise; tests copy them."""
    folder = tmp_path_factory.mktemp("trained")
    for fold in (0, 1):
        write_fold(folder / RUN / f"fold_{fold}", seed=fold + 3, plans=PLANS)
    (folder / "imgs").mkdir()
    for number in range(2):
        values = np.random.default_rng(number).normal(100, 20, GRID.size).astype(np.float32)
        write_image(folder / "imgs" / f"case{number}_0000.nii.gz", values, GRID)
    return folder


@pytest.fixture(autouse=True)
def _here(trained: Path, users_folder: Path) -> None:
    for path in trained.rglob("*"):
        if path.is_file():
            target = users_folder / path.relative_to(trained)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)


def masks(folder: str) -> list[Volume]:
    return [read_labels(Path(folder) / f"case{number}.nii.gz") for number in range(2)]


def run(*arguments: str) -> None:
    assert predict(["-i", "imgs", "-device", "cpu", *arguments]) == 0


def postprocessed(volume: Volume, steps: Sequence[MaskRule] = STEPS) -> np.ndarray:
    return np.asarray(apply_rules(volume.array, volume.geometry.spacing, steps, PLANS.labels))


def test_a_runs_rules_are_applied_on_the_images_own_grid_unless_disabled() -> None:
    choose(RUN, *STEPS)
    run("-o", "plain", "--disable_postprocessing", "--save_probabilities")
    run("-o", "masks", "--save_probabilities")
    changed = 0
    for number, (plain, mask) in enumerate(zip(masks("plain"), masks("masks"), strict=True)):
        assert mask.geometry == plain.geometry
        assert np.array_equal(mask.array, postprocessed(plain))
        changed += int((mask.array != plain.array).sum())
        whole = [open_probabilities(Path(folder) / f"case{number}_probabilities.b2nd").array[:] for folder in ("plain", "masks")]
        assert np.array_equal(*whole)  # they are without it
    assert changed > 0, "nothing was changed: the comparison says little"
    found = [json.loads((Path(folder) / "prediction.json").read_text())["postprocessing"] for folder in ("plain", "masks")]
    assert found == [[], [step.to_dict() for step in STEPS]]


def test_one_fold_of_the_run_has_its_rules_and_another_folder_has_none() -> None:
    choose(RUN, *STEPS)
    run("-o", "masks", "-m", str(RUN / "fold_1"))
    run("-o", "plain", "-m", str(RUN / "fold_1"), "--disable_postprocessing")
    assert all(np.array_equal(mask.array, postprocessed(plain)) for plain, mask in zip(masks("plain"), masks("masks"), strict=True))
    (RUN / "postprocessing.json").unlink()
    run("-o", "without", "-m", str(RUN / "fold_1"))
    assert all(np.array_equal(mask.array, plain.array) for plain, mask in zip(masks("plain"), masks("without"), strict=True))


def test_masks_that_were_postprocessed_otherwise_are_not_continued(capsys: pytest.CaptureFixture[str]) -> None:
    choose(RUN, STEPS[1])
    run("-o", "masks")
    before = Path("masks/case0.nii.gz").read_bytes()
    run("-o", "masks", "--continue_prediction")
    capsys.readouterr()
    assert predict(["-i", "imgs", "-o", "masks", "--continue_prediction", "--disable_postprocessing"]) == 2
    text = capsys.readouterr().err
    assert "predicted in another way" in text and "largest_component" in text
    assert Path("masks/case0.nii.gz").read_bytes() == before


def test_a_record_from_before_postprocessing_is_continued_where_there_is_none() -> None:
    run("-o", "masks")
    record = json.loads(Path("masks/prediction.json").read_text())
    del record["postprocessing"]
    Path("masks/prediction.json").write_text(json.dumps(record))
    run("-o", "masks", "--continue_prediction")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ('{"rules": []}', "not a valid Postprocessing document"),
        (None, "postprocessing was chosen for another plan"),
    ],
)
def test_rules_that_cannot_be_used_stop_before_anything_is_predicted(
    capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    if content is None:
        choose(RUN, *STEPS, plans=make_tiny_plans())
    else:
        (RUN / "postprocessing.json").write_text(content)
    assert predict(["-i", "imgs", "-o", "masks"]) == 2
    text = capsys.readouterr().err
    assert words in text and "--disable_postprocessing" in text
    assert not Path("masks").exists()
    run("-o", "masks", "--disable_postprocessing")


def test_rules_for_unknown_classes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    choose(RUN, MaskRule(kind="fill_holes", label="liver"))
    assert predict(["-i", "imgs", "-o", "masks"]) == 2
    assert "classes that the model does not have" in capsys.readouterr().err


def test_an_ensemble_of_folders_that_agree_is_postprocessed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    choose(RUN, *STEPS)
    for fold in ("0", "1"):
        run("-o", f"fold_{fold}", "-f", fold, "--save_probabilities")
    assert ensemble(["-i", "fold_0", "fold_1", "-o", "plain", "--disable_postprocessing"]) == 0
    assert ensemble(["-i", "fold_0", "fold_1", "-o", "masks"]) == 0
    assert all(np.array_equal(mask.array, postprocessed(plain)) for plain, mask in zip(masks("plain"), masks("masks"), strict=True))
    assert any((mask.array != plain.array).any() for plain, mask in zip(masks("plain"), masks("masks"), strict=True))

    run("-o", "fold_1", "-f", "1", "--save_probabilities", "--disable_postprocessing")
    capsys.readouterr()
    assert ensemble(["-i", "fold_0", "fold_1", "-o", "differing"]) == 0
    said = capsys.readouterr().out
    assert "no postprocessing is applied, because the folders differ in theirs" in said and "fold_1: none" in said
    assert all(np.array_equal(mask.array, plain.array) for plain, mask in zip(masks("plain"), masks("differing"), strict=True))
    Path("fold_1/prediction.json").unlink()
    assert ensemble(["-i", "fold_0", "fold_1", "-o", "unknown"]) == 0
    assert "fold_1: not known" in capsys.readouterr().out
    Path("fold_0/prediction.json").write_text("{")
    assert ensemble(["-i", "fold_0", "fold_1", "-o", "broken"]) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err


def test_it_travels_with_the_model(tmp_path: Path) -> None:
    choose(RUN, *STEPS)
    run("-o", "here")
    export_model(Path("model.zip"))
    installed = import_model(Path("model.zip"), target=tmp_path / "installed").folder
    document = Postprocessing.load(installed / "postprocessing.json")
    assert "- components of lesion from 30 mm3\n- largest component of organ" in (installed / "MODEL_CARD.md").read_text()
    assert document == Postprocessing.load(RUN / "postprocessing.json")
    run("-o", "there", "-m", str(installed))
    assert all(np.array_equal(here.array, there.array) for here, there in zip(masks("here"), masks("there"), strict=True))


def test_figures_of_few_cases_do_not_travel() -> None:
    choose(RUN, *STEPS, num_cases=4)
    export_model(Path("model.zip"))
    document = Postprocessing.load(import_model(Path("model.zip"), target=Path("installed")).folder / "postprocessing.json")
    assert document.steps == STEPS and not document.decisions


def test_rules_of_another_plan_are_neither_exported_nor_imported() -> None:
    choose(RUN, *STEPS)
    export_model(Path("model.zip"))
    choose(RUN, *STEPS, plans=make_tiny_plans())
    with pytest.raises(FedsamError, match="chosen for another plan") as caught:
        export_model(Path("other.zip"))
    assert caught.value.fix == "copy the whole run again, or leave postprocessing.json out"
