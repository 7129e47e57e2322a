"""Bundles from elsewhere: whatever is wrong with one is said, and nothing is left behind."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.entrypoints import import_model as import_command
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.plain_zip import write_plain_zip
from fedsam_pipeline.model.registry import BASE_MODELS, base_model_spec
from fedsam_pipeline.pipeline.export_model import export_model
from fedsam_pipeline.pipeline.import_model import import_model
from tests.pipeline.model_bundles import Members, files_below, make_bundle, members_of, refused, rewritten
from tests.pipeline.trained_runs import RUN, write_fold

pytestmark = pytest.mark.usefixtures("users_folder")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made"))


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
