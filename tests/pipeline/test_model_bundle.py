"""Bundles: what goes out comes in again, predicts alike, names nobody; whatever is wrong with one is said, and nothing is left behind."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.dataset.volume import Geometry, read_labels, write_image
from fedsam_pipeline.entrypoints import export_model as export_command
from fedsam_pipeline.entrypoints import import_model as import_command
from fedsam_pipeline.entrypoints import predict as predict_command
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import sha256_file
from fedsam_pipeline.model.plain_zip import write_plain_zip
from fedsam_pipeline.model.registry import BASE_MODELS, base_model_spec
from fedsam_pipeline.model.trained_files import load_tensors, save_tensors
from fedsam_pipeline.pipeline.export_model import export_model
from fedsam_pipeline.pipeline.import_model import import_model
from fedsam_pipeline.specs.postprocessing import Postprocessing
from tests.conftest import make_tiny_plans
from tests.inference.coverage_for_tests import make_coverage
from tests.pipeline.trained_runs import RUN, SECRETS, write_fold

Members = dict[str, bytes]
RESULTS = Path("fedsam_data/results")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two folds, and the run it was made of, in one folder. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("made")
    for fold in (0, 1):
        write_fold(folder / RUN / f"fold_{fold}", seed=fold)
    export_model(folder / "model.zip", model=folder / RUN, licence="CC-BY-4.0")
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine: an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("fedsam_raw", "fedsam_preprocessed", "fedsam_results"):
        monkeypatch.delenv(name, raising=False)


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files_below(folder: Path) -> Members:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewritten(made: Path, change: Callable[[Members, dict[str, Any]], None]) -> Path:
    """The bundle with other members; afterwards the index has the right hashes and sizes of those that it lists."""
    members = members_of(made / "model.zip")
    index = json.loads(members["index.json"])
    change(members, index)
    for entry in index["members"]:
        if entry["name"] in members:
            content = members[entry["name"]]
            entry |= {"num_bytes": len(content), "file_sha256": hashlib.sha256(content).hexdigest()}
    members["index.json"] = json.dumps(index).encode()
    write_plain_zip(Path("other.zip"), members)
    return Path("other.zip")


def refused(path: Path, words: str) -> None:
    """The command ends with code 2 and an error of these words, and leaves nothing."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(FedsamError, match=words) as caught:
        import_model(path)
    assert "fix:" in str(caught.value)
    assert sorted(Path().rglob("*")) == before


def test_a_bundle_comes_back_as_it_went(made: Path) -> None:
    imported = import_model(made / "model.zip")
    assert imported.folder == RESULTS / RUN
    assert imported.needs is None
    assert files_below(imported.folder) == members_of(made / "model.zip")
    for fold in ("fold_0", "fold_1"):
        for name in ("adapter.safetensors", "bundle.json", "manifest.json", "plans.json", "recipe.json"):
            assert (imported.folder / fold / name).read_bytes() == (made / RUN / fold / name).read_bytes()
    assert not list(Path().rglob(".*"))


def test_an_imported_model_predicts_as_the_trained_one_without_anything_else(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("imgs").mkdir()
    array = np.random.default_rng(0).normal(100, 20, (5, 24, 20)).astype(np.float32)
    write_image(Path("imgs/x_0000.nii.gz"), array, Geometry((5, 24, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    assert predict_command.main(["-i", "imgs", "-o", "trained", "-m", str(made / RUN), "-device", "cpu"]) == 0
    assert import_command.main([str(made / "model.zip")]) == 0
    out = capsys.readouterr().out
    assert "fold 0, 1, made with fedsam-pipeline" in out and f"fedsam_predict -i IMAGES -o MASKS -m {RESULTS / RUN}" in out
    assert predict_command.main(["-i", "imgs", "-o", "imported", "-device", "cpu"]) == 0
    expected, found = (read_labels(Path(name) / "x.nii.gz").array for name in ("trained", "imported"))
    assert np.array_equal(found, expected) and len(np.unique(found)) > 1


def test_equal_models_give_equal_bytes_and_a_bundle_can_be_handed_on(made: Path) -> None:
    fold = shutil.copytree(made / RUN, Path("copy") / RUN) / "fold_0" / "plans.json"
    fold.write_text(json.dumps(json.loads(fold.read_text()), indent=7))  # another layout of the same document
    export_model(Path("again.zip"), model=Path("copy") / RUN, licence="CC-BY-4.0")
    imported = import_model(made / "model.zip", target=Path("anywhere"))
    export_model(Path("handed_on.zip"), model=imported.folder, licence="CC-BY-4.0")
    assert sha256_file(Path("again.zip")) == sha256_file(Path("handed_on.zip")) == sha256_file(made / "model.zip")


def test_no_case_no_patient_and_no_path_is_in_a_bundle(made: Path) -> None:
    content = (made / "model.zip").read_bytes().decode("latin-1")
    assert [word for word in (*SECRETS, str(made), "run.json", "run_id") if word in content] == []
    dataset = json.loads(members_of(made / "model.zip")["fold_0/dataset.json"])  # of the one in the fold, labels and channels alone
    assert dataset == {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1, "lesion": 2}}


def test_the_card_says_what_people_have_to_know(made: Path) -> None:
    card = members_of(made / "model.zip")["MODEL_CARD.md"].decode()
    for words in (
        "Not a medical device",
        "0 background, 1 organ, 2 lesion",
        "MRI (z-scored image by image)",
        "| 0 | federated, fedavg | site_a, site_b | 17 | 2 x 2 | 0 | 0.0 up, 0.0 down |",
        "| fold | cases | organ | lesion | mean Dice |",
        "| 1 | 13 | 0.7000 | 0.5000 | 0.6000 |",
        "| 0 | site_a | 6 | 0.7000 |",
        "drawn at random",
        "Trained weights in this bundle: CC-BY-4.0.",
        "fedsam_import_model BUNDLE.zip",
    ):
        assert words in card, words
    assert "fedsam_download_weights" not in card


def test_scores_of_few_cases_stay(tmp_path: Path) -> None:
    write_fold(tmp_path / RUN / "fold_0", val_cases=4)
    members = members_of(export_model(Path("few.zip"), model=tmp_path / RUN))
    record = json.loads(members["fold_0/training.json"])
    assert record["validation"]["num_cases"] == 11 and record["validation"]["sites"] is None
    card = members["MODEL_CARD.md"].decode()
    assert "Sites are not told apart" in card and "| site_a |" not in card
    assert "have not stated a licence" in card


def test_the_default_name_and_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    assert export_command.main(["-f", "1"]) == 0
    path = Path("Dataset001_Demo__flap_sam__plans__main__federated__fedavg__seed0.zip")
    assert f"{path} (" in capsys.readouterr().out
    assert json.loads(members_of(path)["index.json"])["folds"] == ["1"]
    assert export_command.main(["-f", "1"]) == 2
    assert "the bundle exists already" in capsys.readouterr().err
    assert export_command.main(["-f", "0", "--overwrite"]) == 0
    assert json.loads(members_of(path)["index.json"])["folds"] == ["0"]


def test_what_cannot_be_exported(made: Path) -> None:
    with pytest.raises(FedsamError, match=r"there is no trained dataset[\s\S]*fedsam_train_federated"):
        export_model()
    with pytest.raises(FedsamError, match=r"a bundle is a zip"):
        export_model(Path("model.tar"), model=made / RUN)
    shutil.copytree(made / RUN, "renamed")
    with pytest.raises(FedsamError, match=r"not named as a run"):
        export_model(model=Path("renamed"))
    write_fold(RESULTS / RUN / "fold_0")
    write_fold(RESULTS / RUN / "fold_1", plans=make_tiny_plans(window_overlap=0.25))
    with pytest.raises(FedsamError, match=r"different plans"):
        export_model()
    write_fold(RESULTS / RUN / "fold_1", recipe="decoder")
    with pytest.raises(FedsamError, match=r"different recipes[\s\S]*leave fold 1 out"):
        export_model()
    (RESULTS / RUN / "fold_0" / "run.json").write_text("{}")
    with pytest.raises(FedsamError, match=r"protocol: missing"):
        export_model(folds=["0"])
    (RESULTS / RUN / "fold_0" / "run.json").write_text('{"final": {"all_sites": 3}}')
    with pytest.raises(FedsamError, match=r"records of a training cannot be read"):
        export_model(folds=["0"])
    assert not list(Path().glob("*.zip"))


def test_a_fold_without_records_is_exported_and_says_so(made: Path) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    for name in ("run.json", "progress.jsonl", "communication.json"):
        (RESULTS / RUN / "fold_0" / name).unlink()
    members = members_of(export_model(Path("bare.zip"), folds=["0"]))
    assert "fold_0/training.json" not in members
    assert "No record of the training" in members["MODEL_CARD.md"].decode()
    shutil.rmtree(RESULTS)
    assert import_model(Path("bare.zip")).index.folds == ("0",)


def test_coverage_travels_with_the_model_and_must_be_its_plans(made: Path) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    make_coverage(channels=({"name": "MRI", "spans": ((1.0, 2.0),)},)).save(RESULTS / RUN / "fold_0" / "coverage.json")
    members = members_of(export_model(Path("covered.zip")))
    assert "fold_0/coverage.json" in members and "fold_1/coverage.json" not in members
    shutil.rmtree(RESULTS)
    imported = import_model(Path("covered.zip"))
    assert (imported.folder / "fold_0" / "coverage.json").read_bytes() == members["fold_0/coverage.json"]
    make_coverage().save(imported.folder / "fold_0" / "coverage.json")  # of another channel
    export_model(Path("wrong.zip"), model=imported.folder)
    shutil.rmtree(RESULTS)
    refused(Path("wrong.zip"), r"a model's coverage does not belong to its plan[\s\S]*channels MR\n")


def test_postprocessing_that_is_none_is_not_exported(made: Path) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    (RESULTS / RUN / "postprocessing.json").write_text('{"rules": []}')
    with pytest.raises(FedsamError, match="not a valid Postprocessing document"):
        export_model(Path("pp.zip"))
    assert not Path("pp.zip").exists()


def test_postprocessing_of_another_plan_is_not_imported(made: Path) -> None:
    def change(members: Members, index: dict[str, Any]) -> None:
        document = Postprocessing(dataset_name="Dataset001_Demo", plan_sha256="0" * 64, steps=())
        members["postprocessing.json"] = json.dumps(document.to_dict()).encode()
        index["members"].append({"name": "postprocessing.json", "num_bytes": 0, "file_sha256": "0" * 64})

    refused(rewritten(made, change), "postprocessing was chosen for another plan")


def test_a_broken_adapter_is_not_exported(made: Path) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    adapter = RESULTS / RUN / "fold_0" / "adapter.safetensors"
    tensors = load_tensors(adapter)
    tensors[min(tensors)][0] = torch.nan
    save_tensors(adapter, tensors)
    with pytest.raises(FedsamError, match="fails its hash check"):
        export_model(Path("x.zip"))
    info = json.loads((RESULTS / RUN / "fold_0" / "bundle.json").read_text())
    (RESULTS / RUN / "fold_0" / "bundle.json").write_text(json.dumps(info | {"adapter_sha256": sha256_file(adapter)}))
    with pytest.raises(FedsamError, match=f"{min(tensors)}: NaN or infinite"):
        export_model(Path("x.zip"))


def test_every_licence_of_the_registry_can_be_handed_on() -> None:
    from fedsam_pipeline.model.bundle_zip import licence_text

    for spec in BASE_MODELS.values():
        if spec.weights is not None:
            assert len(licence_text(spec.weights.licence)) > 1000
    assert licence_text("Apache-2.0") == (Path(__file__).parents[2] / "LICENSE").read_bytes()
    with pytest.raises(FedsamError, match="text of a licence"):
        licence_text("GPL-9.0")


def test_a_model_that_exists_is_not_overwritten(made: Path) -> None:
    import_model(made / "model.zip")
    refused(made / "model.zip", "a folder exists already")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, i: m.pop("fold_1/adapter.safetensors"), "fold_1/adapter.safetensors missing"),
        (lambda m, i: m.update({"fold_0/run.json": b"{}"}), "fold_0/run.json additional"),
        (lambda m, i: m.update({"__init__.py": b""}), "__init__.py additional"),
        (lambda m, i: i["members"].append({"name": "fold_0/x.pkl", "num_bytes": 0, "file_sha256": "0" * 64}), "fold_0/x.pkl' unknown"),
        (lambda m, i: i.update(folds=["0"]), "unknown"),
        (lambda m, i: i.update(folds=["0", "1", "2"]), r"fold_2/adapter.safetensors, [\s\S]*missing"),
        (lambda m, i: i.update(folds=["../0", "1"]), "folds.0"),
        (lambda m, i: i.update(dataset_name="../../etc"), "dataset_name"),
        (lambda m, i: i.update(dataset_name="Dataset001_Demo\n"), "dataset_name"),
        (lambda m, i: i.update(configuration=".."), "configuration"),
        (lambda m, i: i.update(run="a/b"), "run: "),
        (lambda m, i: i.update(dataset_name="Dataset002_Other"), "index of a bundle does not fit its plan"),
        (lambda m, i: i.update(base_model="sam3"), r"base weights that this version[\s\S]*sam3, made with"),
        (lambda m, i: i.update(base_model="lite_medsam"), r"lite_medsam with SHA-256 random[\s\S]*79d8c9dca6db"),
        (lambda m, i: i.update(schema_version=2, made_with="9.1"), r"a newer schema version[\s\S]*schema version 2[\s\S]*'9.1'"),
        (lambda m, i: i.update(schema_version=0, made_with="0.0.1"), r"an older schema version[\s\S]*install fedsam-pipeline '0.0.1'"),
        (lambda m, i: i.update(members=[]), "members: MODEL_CARD.md, fold_0/adapter.safetensors"),
        (lambda m, i: i.pop("made_with"), "made_with: missing"),
        (lambda m, i: m.update({"fold_0/plans.json": b"{"}), r"cannot be read as JSON[\s\S]*fold_0/plans.json"),
        (lambda m, i: m.update({"fold_0/plans.json": b"[" * 100_000}), r"cannot be read as JSON[\s\S]*fold_0/plans.json"),
        (lambda m, i: m.update({"fold_0/bundle.json": b"9" * 10_000}), r"cannot be read as JSON[\s\S]*fold_0/bundle.json"),
        (lambda m, i: m.update({"fold_1/adapter.safetensors": b"\x80\x04."}), r"tensor file cannot be read[\s\S]*fold_1/adapter"),
        (lambda m, i: m.update({"fold_1/adapter.safetensors": m["fold_0/adapter.safetensors"]}), r"an adapter fails its hash check"),
    ],
)
def test_bundles_that_are_refused(made: Path, change: Callable[[Members, dict[str, Any]], None], words: str) -> None:
    refused(rewritten(made, change), words)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (
            "plans.json",
            {"schema_version": 2},
            r"not a valid Plans document[\s\S]*fold_0/plans.json[\s\S]*schema_version[\s\S]*use the version",
        ),
        ("recipe.json", {"new_key": 1}, r"not a valid Recipe document[\s\S]*new_key: unknown key"),
        ("plans.json", {"base_model": "vit_b"}, r"base models tiny_random \(bundle.json\), vit_b|image_size: 28 is no multiple of 224"),
        ("bundle.json", {"base_weights_sha256": "1" * 64}, r"trained on other weights of tiny_random"),
        ("bundle.json", {"preprocessing_version": 1}, r"images that this version would make otherwise"),
        ("bundle.json", {"lora_rank": 4}, "LoRA rank 4"),
        ("manifest.json", {"recipe": "samed"}, "recipes flap_sam"),
        (
            "dataset.json",
            {"labels": {"background": 0, "liver": 1}},
            r"labels of a trained fold are not those of its plan[\s\S]*dataset.json",
        ),
        ("training.json", {"protocol": "swarm"}, r"not a valid TrainingRecord document[\s\S]*fold_0/training.json[\s\S]*protocol"),
        (
            "manifest.json",
            {"tensors": [{"name": "x", "shape": [1], "dtype": "float32", "travels": "both"}]},
            "this version trains it, the manifest does",
        ),
    ],
)
def test_a_bundle_of_another_version_says_what_does_not_fit(made: Path, file: str, changes: dict[str, Any], words: str) -> None:
    def change(members: Members, index: dict[str, Any]) -> None:
        name = f"fold_0/{file}"
        members[name] = json.dumps(json.loads(members[name]) | changes).encode()

    refused(rewritten(made, change), words)


def test_a_bundle_from_before_preprocessing_was_noted_loads(made: Path) -> None:
    def change(members: Members, index: dict[str, Any]) -> None:
        values = json.loads(members["fold_0/bundle.json"])
        del values["preprocessing_version"]
        members["fold_0/bundle.json"] = json.dumps(values).encode()

    assert import_model(rewritten(made, change)).index.folds == ("0", "1")


def test_a_bundle_needs_its_base_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    weights = base_model_spec("vit_b").weights
    monkeypatch.setitem(BASE_MODELS, "tiny_random", base_model_spec("tiny_random").model_copy(update={"weights": weights}))
    monkeypatch.setenv("fedsam_cache", "cache")
    write_fold(tmp_path / RUN / "fold_0")
    members = members_of(export_model(Path("x.zip"), model=tmp_path / RUN))
    assert members["BASE_WEIGHTS_LICENCE.txt"].startswith(b"                                 Apache License")
    card = members["MODEL_CARD.md"].decode()
    assert "sam_vit_b_01ec64.pth" in card and "Licence Apache-2.0" in card
    assert import_command.main(["x.zip"]) == 0
    assert "fedsam_download_weights tiny_random" in capsys.readouterr().out


def test_files_that_are_no_bundle() -> None:
    refused(Path("gone.zip"), "a file is missing")
    Path("text.zip").write_text("hello")
    refused(Path("text.zip"), "a zip cannot be read")
    Path("folder.zip").mkdir()
    refused(Path("folder.zip"), "a zip cannot be read")
    write_plain_zip(Path("other.zip"), {"readme.txt": b"hello"})
    refused(Path("other.zip"), r"no model bundle[\s\S]*readme.txt")
    write_plain_zip(Path("list.zip"), {"index.json": b"[]"})
    refused(Path("list.zip"), "not a valid BundleIndex")
    write_plain_zip(Path("deep.zip"), {"index.json": b"[" * 200_000})
    refused(Path("deep.zip"), "index of a bundle is no JSON")
    write_plain_zip(Path("large.zip"), {"index.json": b" " * (1 << 23)})
    refused(Path("large.zip"), "a member of a zip is too large")


def test_an_interrupted_import_leaves_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsam_pipeline.pipeline.import_model.check_fold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_model(made / "model.zip")
    assert not list(Path().iterdir())


def outcome_of(path: Path, expected: Members) -> None:
    """Whatever the bytes are: an error of ours and nothing left, or the very files."""
    try:
        folder = import_model(path, target=Path("out") / "run").folder
    except FedsamError:
        assert not Path("out").exists()
    else:
        found = files_below(folder)
        assert found.pop("index.json")[:1] == b"{" and found == {
            name: content for name, content in expected.items() if name != "index.json"
        }
        shutil.rmtree("out")


@settings(max_examples=150)
@given(data=st.data())
def test_flipped_bits_never_crash_and_never_change_a_model(made: Path, data: st.DataObject) -> None:
    content = bytearray((made / "model.zip").read_bytes())
    with zipfile.ZipFile(made / "model.zip") as archive:
        directory = archive.start_dir
    for _ in range(data.draw(st.integers(1, 3))):
        first = data.draw(st.sampled_from([0, directory, directory]))  # the directory is short, and says what is where
        place = data.draw(st.integers(first, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    Path("flipped.zip").write_bytes(content)
    outcome_of(Path("flipped.zip"), members_of(made / "model.zip"))


@settings(max_examples=60)
@given(data=st.data())
def test_cut_and_spliced_bundles_never_crash(made: Path, data: st.DataObject) -> None:
    content = (made / "model.zip").read_bytes()
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(content)), st.integers(0, len(content)))))
    middle = data.draw(st.binary(max_size=40))
    Path("cut.zip").write_bytes(content[:start] + middle + content[end:])
    outcome_of(Path("cut.zip"), members_of(made / "model.zip"))


@settings(max_examples=100)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_answered_with_an_error(content: bytes) -> None:
    Path("any.zip").write_bytes(b"PK\x05\x06" + content)
    with pytest.raises(FedsamError):
        import_model(Path("any.zip"))


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5), st.just([]), st.just({})
)


@settings(max_examples=40)
@given(data=st.data())
def test_odd_documents_under_right_hashes_never_crash(made: Path, data: st.DataObject) -> None:
    """As of another version, or of a forger: what is taken is complete, what is not leaves nothing."""

    def change(members: Members, index: dict[str, Any]) -> None:
        name = data.draw(st.sampled_from(sorted(name for name in members if name.endswith(".json") and name != "index.json")))
        place = values = json.loads(members[name])
        while True:
            key = data.draw(st.sampled_from(sorted(place))) if isinstance(place, dict) else data.draw(st.integers(0, len(place) - 1))
            if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans())):
                break
            place = place[key]
        if data.draw(st.booleans()):
            del place[key]
        else:
            place[key] = data.draw(ODD)
        members[name] = json.dumps(values).encode()

    path = rewritten(made, change)
    outcome_of(path, members_of(path))
