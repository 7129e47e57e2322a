"""Plans that users change: another target spacing, hand edits, clean stores, splits of their own, very few cases."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.entrypoints.plan_and_preprocess import main
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.pipeline.train_request import TrainRequest, run_setups
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.specs.plans import Plans
from tests.pipeline.conftest import NAME


@pytest.fixture
def folder(root: Path) -> Path:
    """The preprocessed dataset, not made yet, of the tiny demo dataset in ``raw``."""
    return root / "preprocessed" / NAME


def run(*flags: str) -> int:
    return main(["-m", "tiny_random", "-np", "1", "--privacy_floor", "1", *flags])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -overwrite_target_spacing, -overwrite_plans_name


def test_a_spacing_of_the_users_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_pp") == 0
    planned = Plans.load(folder / "plans.json")
    assert run("-overwrite_target_spacing", "2", "4", "2.5", "-overwrite_plans_name", "coarse") == 0
    plans = Plans.load(folder / "coarse.json")
    assert plans.target_spacing == (2.0, 4.0, 2.5)
    assert plans.slice_axis == 1  # the coarse axis now: later rules follow from the spacing
    assert planned.slice_axis == 0
    assert plans.why["target_spacing"].startswith("set by the user (-overwrite_target_spacing); the rule takes ")
    assert planned.why["target_spacing"] in plans.why["target_spacing"]
    assert Plans.load(folder / "plans.json") == planned
    store = CaseStore(store_folder(folder, plans))
    case = store.open(store.cases()[0]).properties
    whole = [size * length for size, length in zip(case.crop_size, case.original_spacing, strict=True)]
    assert [size * length for size, length in zip(case.resampled_size, plans.target_spacing, strict=True)] == pytest.approx(whole, abs=4.0)
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("-d 1 -p coarse")


def test_a_spacing_of_the_users_own_needs_a_name_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-overwrite_target_spacing", "2", "2", "2") == 2
    assert "-overwrite_plans_name NAME" in capsys.readouterr().err
    assert not folder.exists()


def test_a_rerun_keeps_the_spacing_and_another_one_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--no_pp", "-p", "mine")
    assert run("-overwrite_target_spacing", "2", "2", "2", *flags) == 0
    before = (folder / "mine.json").read_bytes()
    assert run(*flags) == 0
    assert "differs from what would be planned now in target_spacing" in capsys.readouterr().out
    assert run("-overwrite_target_spacing", "2", "2", "2", *flags) == 0
    assert "differs" not in capsys.readouterr().out
    assert run("-overwrite_target_spacing", "3", "2", "2", *flags) == 2
    shown = capsys.readouterr().err
    assert "there is a plan of this name with another target spacing" in shown and "3 x 2 x 2 mm" in shown
    assert (folder / "mine.json").read_bytes() == before


def test_spacings_at_which_nothing_could_be_preprocessed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lengths, words in (
        (("0.001", "0.001", "0.001"), ("the target spacing is too fine", "0.001 x 0.001 x 0.001 mm", "GiB", "a coarser spacing")),
        (("1", "1", "80"), ("the target spacing is too coarse", "at least 4 along each axis", "a finer spacing along x")),
    ):
        assert run("-p", "mine", "-overwrite_target_spacing", *lengths) == 2
        shown = capsys.readouterr().err
        assert not [word for word in words if word not in shown]
    assert not (folder / "mine.json").exists() and not list(folder.glob("store_*"))


@pytest.mark.parametrize("lengths", [("1", "1"), ("1", "1", "0"), ("1", "1", "-2"), ("1", "1", "nan"), ("1", "1", "x")])
def test_spacings_that_are_none(lengths: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("-p", "mine", "-overwrite_target_spacing", *lengths)
    assert caught.value.code == 2
    assert "-overwrite_target_spacing" in capsys.readouterr().err


# hand edits


def test_all_faults_of_an_edited_plan_are_named_before_the_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_pp") == 0
    logs = len(list((folder / "logs").iterdir()))
    labels = {"background": 0, "organ": 1}
    edit(folder / "plans.json", image_size=30, slab_depth=5, labels=labels, plans_name="other", typo=1, window=[0, 28])
    capsys.readouterr()
    assert run("--no_pp") == 2
    shown = capsys.readouterr().err
    for words in (
        "6 faults",
        "image_size: 30 is no multiple of 28, the attention window of tiny_random; 28 or 56 would be",
        "slab_depth: 5 does not divide training.effective_batch",
        "labels: {'background': 0, 'organ': 1}, but dataset.json has",
        "plans_name: other, but the file is Dataset001_Demo/plans.json",
        "typo: unknown key",
        "window.0: Input should be greater than 0, found 0",
    ):
        assert words in shown
    assert len(list((folder / "logs").iterdir())) == logs


def test_a_channel_without_its_numbers_hides_no_other_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_pp") == 0
    (channel,) = json.loads((folder / "plans.json").read_text())["channels"]
    missing = [[{"channel": 3, "offset": 0}]] * 3
    edit(folder / "plans.json", channels=[channel | {"name": "PET", "scheme": "ct"}], encoder_inputs=missing, slab_depth=5)
    capsys.readouterr()
    assert run("--no_pp") == 2
    shown = capsys.readouterr().err
    for words in (
        "6 faults",
        "channels.0.scheme: ct needs clip_low, clip_high, mean and std; clip_low, clip_high, mean, std missing",
        "channels: PET, but dataset.json has",
        "encoder_inputs.2: there is no channel 3",
        "slab_depth: 5 does not divide",
    ):
        assert words in shown


def test_a_plan_that_is_no_json_says_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_pp") == 0
    text = (folder / "plans.json").read_text()
    (folder / "plans.json").write_text(text.replace(",\n", "\n", 1))
    capsys.readouterr()
    assert run("--no_pp") == 2
    shown = capsys.readouterr().err
    assert "cannot be read as JSON" in shown and "line 3" in shown and "keys" not in shown


def test_training_names_the_same_faults(folder: Path, tmp_path: Path) -> None:
    assert run("--no_pp") == 0
    edit(folder / "plans.json", image_size=30, base_model="sam9", labels={"background": 0, "organ": 1, "lump": 2})
    with pytest.raises(FedsamError, match="not a valid Plans document") as caught:
        run_setups(folder, tmp_path / "results", TrainRequest())
    assert "base_model: there is no sam9, only" in str(caught.value)
    assert "labels: " in str(caught.value)
    assert "2 faults" in str(caught.value)  # without a known base model nobody knows the multiples


def test_an_edited_plan_is_kept_and_what_differs_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_pp") == 0
    values = json.loads((folder / "plans.json").read_text())
    del values["why"]["image_size"]
    edit(folder / "plans.json", image_size=56, why=values["why"], training=values["training"] | {"rounds": 3})
    capsys.readouterr()
    assert run("--no_pp") == 0
    printed = capsys.readouterr().out
    assert "differs from what would be planned now in image_size, training.rounds: kept" in printed
    assert "no reason given" in printed
    assert Plans.load(folder / "plans.json").image_size == 56


def test_a_plan_for_other_data_is_set_aside_even_where_labels_changed(folder: Path, tmp_path: Path) -> None:
    assert run("--no_pp") == 0
    edit(folder / "plans.json", image_size=56)
    edit(tmp_path / "raw" / NAME / "dataset.json", labels={"background": 0, "organ": 1, "lump": 2})
    assert run("--no_pp") == 0
    assert "lump" in Plans.load(folder / "plans.json").labels
    assert "nodule" in Plans.load(folder / "plans.before.json").labels


def test_no_edited_plan_is_ever_lost_and_others_leave_no_copy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_pp") == 0
    for number, (floor, side) in enumerate((("2", 56), ("1", 84), ("2", 112))):
        edit(folder / "plans.json", image_size=side)
        assert run("--no_pp", "--privacy_floor", floor) == 0
        assert Plans.load(folder / f"plans.before{number + 1 if number else ''}.json").image_size == side
    assert (
        "was made for other data, another privacy floor or another base model: it is kept as plans.before3.json" in capsys.readouterr().out
    )
    assert run("--no_pp", "--privacy_floor", "1") == 0
    assert "nobody had edited it, so it is planned anew" in capsys.readouterr().out
    assert len(list(folder.glob("plans.before*.json"))) == 3


def test_a_plan_whose_fingerprint_is_gone_counts_as_edited(folder: Path) -> None:
    assert run("--no_pp") == 0
    (folder / "fingerprint.json").write_text("{}")
    assert run("--no_pp", "--privacy_floor", "2") == 0
    assert (folder / "plans.before.json").exists()


# --clean


def test_clean_deletes_the_plans_store_and_those_that_no_plan_needs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert run("-p", "coarse", "-overwrite_target_spacing", "4", "4", "4") == 0
    assert run("-p", "gone", "-overwrite_target_spacing", "5", "5", "5") == 0
    stores = {name: store_folder(folder, Plans.load(folder / f"{name}.json")) for name in ("plans", "coarse", "gone")}
    (folder / "gone.json").unlink()
    left = stores["plans"] / "left_the_dataset.json"
    left.write_text("{}")
    kept = {path: path.stat().st_mtime_ns for path in stores["coarse"].iterdir()}
    capsys.readouterr()
    assert run("--clean") == 0
    printed = capsys.readouterr().out
    assert f"--clean deleted {', '.join(sorted(stores[name].name for name in ('plans', 'gone')))}" in printed
    assert "cases preprocessed: " in printed and "kept from before" not in printed
    assert sorted(folder.glob("store_*")) == sorted([stores["plans"], stores["coarse"]])
    assert not left.exists()
    assert {path: path.stat().st_mtime_ns for path in stores["coarse"].iterdir()} == kept
    assert not list(folder.glob(".tmp-*"))


def test_clean_on_the_first_run_has_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--clean") == 0
    assert "--clean deleted nothing" in capsys.readouterr().out


def test_clean_deletes_nothing_where_a_plan_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    (folder / "broken.json").write_text('{"image_size": 3}')
    before = sorted(folder.rglob("*.b2nd"))
    assert run("--clean") == 2
    assert "broken.json" in capsys.readouterr().err
    assert sorted(folder.rglob("*.b2nd")) == before


@pytest.mark.parametrize("other", ["--no_pp", "--dry_run"])
def test_clean_without_preprocessing_is_refused(folder: Path, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--clean", other) == 2
    assert f"--clean {other}" in capsys.readouterr().err
    assert not folder.exists()


# splits and few cases


def test_given_splits_reach_the_training(folder: Path, tmp_path: Path) -> None:
    cases = load_raw_dataset(tmp_path / "raw" / NAME).cases
    folder.mkdir(parents=True)
    val = [case for case in cases if case.endswith("00")]
    given = [{"train": list(cases), "val": []}, {"train": [case for case in cases if case not in val], "val": val}]
    (folder / "splits_final.json").write_text(json.dumps(given))
    assert run() == 0
    assert json.loads((folder / "splits_final.json").read_text()) == given
    for fold, split in enumerate(given):
        (setup,) = run_setups(folder, tmp_path / "results", TrainRequest(fold=str(fold)))
        assert sorted(case for site in setup.sites for case in site.train_cases) == split["train"]
        assert sorted(case for site in setup.sites for case in site.val_cases) == split["val"]
    with pytest.raises(FedsamError, match="there is no such fold"):
        run_setups(folder, tmp_path / "results", TrainRequest(fold="2"))


def keep_cases(raw: Path, number: int, *, sites: int) -> list[str]:
    """Leaves ``number`` cases in the raw dataset, dealt out to ``sites`` sites."""
    content = json.loads((raw / "dataset.json").read_text())
    cases = sorted(case for members in content["sites"].values() for case in members)
    kept = cases[:number]
    for case in cases[number:]:
        (raw / "imagesTr" / f"{case}_0000.nii.gz").unlink()
        (raw / "labelsTr" / f"{case}.nii.gz").unlink()
    edit(raw / "dataset.json", sites={f"site_{index}": kept[index::sites] for index in range(sites)}, test_sites={})
    shutil.rmtree(raw / "imagesTs")
    return kept


@pytest.mark.parametrize(("number", "sites"), [(1, 1), (2, 1), (2, 2), (3, 2), (4, 1), (4, 4)])
def test_few_cases_have_five_folds(folder: Path, tmp_path: Path, number: int, sites: int) -> None:
    kept = keep_cases(tmp_path / "raw" / NAME, number, sites=sites)
    assert run() == 0
    assert len(json.loads((folder / "splits_final.json").read_text())) == 5
    validated = []
    for fold in ("0", "1", "2", "3", "4", "all"):
        (setup,) = run_setups(folder, tmp_path / "results", TrainRequest(fold=fold))
        assert len(setup.sites) == sites
        assert all(site.train_cases for site in setup.sites)
        validated += [case for site in setup.sites for case in site.val_cases]
        assert len(run_setups(folder, tmp_path / "results", TrainRequest(fold=fold, protocol="local"))) == sites
        assert len(run_setups(folder, tmp_path / "results", TrainRequest(fold=fold, protocol="centralized"))) == 1
    assert sorted(validated) == (
        [] if number == sites else sorted(case for index in range(sites) for case in kept[index::sites] if len(kept[index::sites]) > 1)
    )


def test_few_cases_at_several_sites_need_the_floor_lifted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_cases(tmp_path / "raw" / NAME, 4, sites=2)
    assert main(["-m", "tiny_random", "-np", "1"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 1
    assert "every site has too few cases for its privacy floor" in shown and "--privacy_floor 1" in shown


def test_one_site_of_few_cases_plans_without_a_flag(folder: Path, tmp_path: Path) -> None:
    keep_cases(tmp_path / "raw" / NAME, 1, sites=1)
    assert main(["-m", "tiny_random", "-np", "1"]) == 0
    assert (folder / "plans.json").exists()


def test_no_case_at_all_is_one_error(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_cases(tmp_path / "raw" / NAME, 0, sites=1)
    assert run() == 2
    assert "the dataset has no cases" in capsys.readouterr().err


# leave_one_site_out and inner folds


def test_each_site_is_left_out_once_and_scored_by_what_never_saw_it(folder: Path, tmp_path: Path) -> None:
    assert run() == 0
    request = TrainRequest(protocol="leave_one_site_out", seed=3)
    (together,) = run_setups(folder, tmp_path / "results", TrainRequest())
    validated = {site.site: site.val_cases for site in together.sites}
    setups = run_setups(folder, tmp_path / "results", request)
    assert [setup.folder.parent.name for setup in setups] == [f"leave_one_site_out-{site}__fedavg-int4__seed3" for site in validated]
    for setup, left in zip(setups, validated, strict=True):
        assert setup.held_out is not None
        assert (setup.held_out.site, setup.held_out.train_cases, setup.held_out.val_cases) == (left, (), validated[left])
        assert [site.site for site in setup.sites] == [site for site in validated if site != left]
        assert left not in {setup.held_out.owner[case] for site in setup.sites for case in (*site.train_cases, *site.val_cases)}
        assert [site.site for site in setup.all_sites] == [*(site.site for site in setup.sites), left]
    assert together.held_out is None and together.all_sites == together.sites
    for setup in run_setups(folder, tmp_path / "results", TrainRequest(protocol="leave_one_site_out", fold="all")):
        assert setup.held_out is not None  # all its cases: no training saw any
        assert {case for case, site in setup.held_out.owner.items() if site == setup.held_out.site} == set(setup.held_out.val_cases)


def test_one_site_cannot_be_left_out(folder: Path, tmp_path: Path) -> None:
    keep_cases(tmp_path / "raw" / NAME, 4, sites=1)
    assert run() == 0
    with pytest.raises(FedsamError, match="leave_one_site_out needs several sites"):
        run_setups(folder, tmp_path / "results", TrainRequest(protocol="leave_one_site_out"))


def test_an_inner_fold_knows_the_training_part_only(folder: Path, tmp_path: Path) -> None:
    assert run() == 0
    for fold in ("0", "3"):
        (outer,) = run_setups(folder, tmp_path / "results", TrainRequest(fold=fold))
        (inner,) = run_setups(folder, tmp_path / "results", TrainRequest(fold=f"{fold}-inner"))
        assert inner.folder.name == f"fold_{fold}-inner"
        known = {case for site in outer.sites for case in site.train_cases}
        train = {case for site in inner.sites for case in site.train_cases}
        val = {case for site in inner.sites for case in site.val_cases}
        assert train | val == known and not train & val and val
        assert all(site.train_cases for site in inner.sites)
    for fold in ("9-inner", "all-inner", "-inner", "0-inner-inner"):
        with pytest.raises(FedsamError, match="there is no such fold"):
            run_setups(folder, tmp_path / "results", TrainRequest(fold=fold))


def test_another_strategy_is_refused(folder: Path, tmp_path: Path) -> None:
    assert run() == 0
    with pytest.raises(FedsamError, match="unknown strategy"):
        run_setups(folder, tmp_path / "results", TrainRequest(strategy="no_such"))
    with pytest.raises(FedsamError, match="--min_sites asks for more sites than there are"):
        run_setups(folder, tmp_path / "results", TrainRequest(min_sites=99))
