"""The trained model on disk: it predicts what was trained, and refuses what was changed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import sha256_file
from fedsam_pipeline.model.build import AdaptedModel, ModelSetup, build_adapted
from fedsam_pipeline.model.bundle import FoldModels, load_bundle
from fedsam_pipeline.model.lora import merge_lora
from fedsam_pipeline.model.trained_files import ADAPTER_FILE, BUNDLE_FILE, BundleInfo, load_tensors, write_adapter, write_documents
from fedsam_pipeline.specs.recipe import load_recipe
from tests.conftest import make_tiny_plans

FILES = ["adapter.safetensors", "bundle.json", "manifest.json", "plans.json", "recipe.json"]


def trained(seed: int = 1) -> AdaptedModel:
    """The tiny model with every trained tensor moved, as training would."""
    adapted = build_adapted("tiny_random", load_recipe("flap_sam"), rank=2, num_classes=3, image_size=28, weights=None)
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapted.trained_tensors().values():
        tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return adapted


def write(folder: Path, adapted: AdaptedModel, **changes: Any) -> Path:
    info = {"base_model": "tiny_random", "base_weights_sha256": "random", "lora_rank": 2, "rounds_done": 3, "adapter_sha256": "0" * 64}
    write_documents(folder, make_tiny_plans(), load_recipe("flap_sam"), adapted.manifest)
    write_adapter(folder, adapted.trained_tensors(), BundleInfo.from_dict(info | changes))
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "fold_0", trained())


def images() -> torch.Tensor:
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_the_loaded_model_gives_the_trained_models_logits(tmp_path: Path) -> None:
    adapted = trained()
    expected = adapted.model.eval().decode(adapted.model.encode(images()))
    loaded = load_bundle(write(tmp_path, adapted))
    found = loaded.model.decode(loaded.model.encode(images()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    untrained = build_adapted("tiny_random", load_recipe("flap_sam"), rank=2, num_classes=3, image_size=28, weights=None).model
    assert (found - untrained.decode(untrained.encode(images()))).abs().max() > 1e-2


def test_lora_is_merged_and_nothing_trains(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    merge_lora(loaded.model)  # of merged layers changes nothing
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.labels == {"background": 0, "organ": 1, "lesion": 2}


@torch.no_grad()
def test_folds_take_turns_in_one_model_and_compute_what_they_compute_alone(tmp_path: Path) -> None:
    folders = [write(tmp_path / f"fold_{seed}", trained(seed)) for seed in range(3)]
    alone = [load_bundle(folder).model for folder in folders]
    expected = [model.decode(model.encode(images())) for model in alone]
    assert not torch.equal(expected[0], expected[1])
    folds = FoldModels(folders)
    assert len(folds) == 3
    for fold in (0, 2, 2, 1, 0):
        folds.use(fold)
        assert torch.equal(folds.model.decode(folds.model.encode(images())), expected[fold])


@torch.no_grad()
def test_what_an_aggregation_folded_into_the_base_stays_with_its_fold(tmp_path: Path) -> None:
    folders = [write(tmp_path / f"fold_{seed}", trained(seed)) for seed in range(2)]
    name = next(name for name in load_tensors(folders[0] / ADAPTER_FILE) if ".lora_B_" in name)
    layer, target = name.split(".lora_B_")
    tensors = load_tensors(folders[0] / ADAPTER_FILE)
    rows, columns = len(tensors[name]), tensors[f"{layer}.lora_A_{target}"].shape[1]
    tensors |= {f"{layer}.residual_B_{target}": torch.ones(rows, 1), f"{layer}.residual_A_{target}": torch.ones(1, columns)}
    info = BundleInfo.load(folders[0] / BUNDLE_FILE)
    write_adapter(folders[0], tensors, info)
    expected = [load_bundle(folder).model.encode(images()) for folder in folders]
    folds = FoldModels(folders)
    for fold in (0, 1, 0, 0):
        folds.use(fold)
        assert torch.equal(folds.model.encode(images()), expected[fold])


def test_folds_of_another_kind_cannot_share_a_model(tmp_path: Path) -> None:
    first = write(tmp_path / "fold_0", trained())
    second = write(tmp_path / "fold_1", trained(), random_encoder=True)
    make_tiny_plans(slab_depth=4).save(second / "plans.json")
    with pytest.raises(FedsamError, match="no models of one kind") as caught:
        FoldModels([first, second])
    assert "another plan, base model or LoRA rank than fold_0" in str(caught.value) and "fedsam_ensemble" in str(caught.value)


def test_the_folder_holds_no_pickle(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == FILES
    for path in bundle.glob("*.json"):
        assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    content = (bundle / ADAPTER_FILE).read_bytes()
    header_length = int.from_bytes(content[:8], "little")  # safetensors: length of a JSON header, the header, raw numbers
    header = json.loads(content[8 : 8 + header_length])
    assert len(content) == 8 + header_length + max(entry["data_offsets"][1] for entry in header.values())


def test_what_was_written_names_the_adapters_hash(bundle: Path) -> None:
    info = BundleInfo.load(bundle / BUNDLE_FILE)
    assert info.adapter_sha256 == sha256_file(bundle / ADAPTER_FILE)
    assert (info.base_model, info.lora_rank, info.rounds_done) == ("tiny_random", 2, 3)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", trained()), write(tmp_path / "b", trained())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in FILES)


def test_a_tampered_adapter_fails_its_hash(bundle: Path) -> None:
    path = bundle / ADAPTER_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FedsamError, match=r"an adapter fails its hash check[\s\S]*adapter.safetensors[\s\S]*copy the whole folder again"):
        load_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"\x80\x04 a pickle", b"\xff" * 64])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(FedsamError, match=r"a tensor file cannot be read[\s\S]*a.safetensors[\s\S]*a safetensors file"):
        load_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(FedsamError, match=rf"(is missing|cannot be read)[\s\S]*{name}[\s\S]*copy the whole folder again"):
        load_bundle(bundle)


def test_a_folder_without_its_last_file_is_not_finished(bundle: Path) -> None:
    (bundle / BUNDLE_FILE).unlink()
    with pytest.raises(FedsamError, match="this folder holds no finished model"):
        load_bundle(bundle)


def test_other_base_weights_are_refused(bundle: Path) -> None:
    edit(bundle / BUNDLE_FILE, base_weights_sha256="1" * 64)
    with pytest.raises(FedsamError, match=rf"trained on other weights of tiny_random[\s\S]*found: +random[\s\S]*{'1' * 64}"):
        load_bundle(bundle)


def test_an_unknown_base_model_is_refused(bundle: Path) -> None:
    edit(bundle / BUNDLE_FILE, base_model="sam3")
    with pytest.raises(FedsamError, match="unknown base model"):
        load_bundle(bundle)


def test_missing_base_weights_name_the_command(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("fedsam_cache", str(tmp_path / "empty"))
    sha256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
    edit(bundle / BUNDLE_FILE, base_model="lite_medsam", base_weights_sha256=sha256)
    with pytest.raises(FedsamError, match=r"weights of lite_medsam are missing[\s\S]*fedsam_download_weights lite_medsam"):
        load_bundle(bundle)


def test_an_adapter_of_other_tensors_does_not_fit(bundle: Path) -> None:
    tensors = load_tensors(bundle / ADAPTER_FILE)
    del tensors[min(tensors)]
    save_file(tensors, bundle / ADAPTER_FILE)
    edit(bundle / BUNDLE_FILE, adapter_sha256=sha256_file(bundle / ADAPTER_FILE))
    with pytest.raises(FedsamError, match=rf"does not fit its manifest[\s\S]*{len(tensors)} tensors[\s\S]*the {len(tensors) + 1} tensors"):
        load_bundle(bundle)


def test_tensors_of_another_shape_do_not_fit(bundle: Path) -> None:
    tensors = load_tensors(bundle / ADAPTER_FILE)
    name = min(tensors)
    tensors[name] = torch.zeros(1, 1)
    save_file(tensors, bundle / ADAPTER_FILE)
    edit(bundle / BUNDLE_FILE, adapter_sha256=sha256_file(bundle / ADAPTER_FILE))
    with pytest.raises(FedsamError, match=r"an adapter tensor does not fit the model[\s\S]*\(1, 1\)"):
        load_bundle(bundle)


@pytest.mark.parametrize("changes", [{"lora_rank": 4}])
def test_another_rank_than_the_manifests_does_not_fit(bundle: Path, changes: dict[str, Any]) -> None:
    edit(bundle / BUNDLE_FILE, **changes)
    with pytest.raises(FedsamError, match="does not fit its manifest"):
        load_bundle(bundle)


def test_an_interrupted_write_is_not_taken_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = trained()
    write(tmp_path, adapted)
    (tmp_path / BUNDLE_FILE).unlink()

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("fedsam_pipeline.model.trained_files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, adapted)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(FILES) - {BUNDLE_FILE})


def setup(**changes: Any) -> ModelSetup:
    values: dict[str, Any] = {"plans": make_tiny_plans(), "recipe": load_recipe("flap_sam"), "weights": None}
    return ModelSetup(**values | changes)


def test_training_starts_from_a_bundle_and_both_sides_agree_on_it(tmp_path: Path) -> None:
    plans = make_tiny_plans(training={"lora_rank": 2})
    adapted = trained()
    start = write(tmp_path / "fold_0", adapted)
    begun = setup(plans=plans, start=start)
    found, expected = begun.build().trained_tensors(), adapted.trained_tensors()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert begun.agreement()["start_sha256"] == sha256_file(start / ADAPTER_FILE)
    assert setup(plans=plans).agreement()["start_sha256"] == "none"


def test_a_start_is_known_by_its_document_and_checked_when_it_is_built(tmp_path: Path) -> None:
    start = write(tmp_path / "fold_0", trained())
    begun = setup(plans=make_tiny_plans(training={"lora_rank": 2}), start=start)
    agreed, adapter = begun.agreement(), start / ADAPTER_FILE
    damaged = bytearray(adapter.read_bytes())
    damaged[-1] ^= 1
    adapter.write_bytes(damaged)
    assert begun.agreement() == agreed
    with pytest.raises(FedsamError, match="an adapter fails its hash check"):
        begun.build()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"plans": make_tiny_plans(training={"lora_rank": 4})}, r"lora_A_q: \(2, \d+\), not \(4, \d+\)[\s\S]*and \d+ more"),
        ({"recipe": load_recipe("partial_decoder")}, "not trained by recipe partial_decoder"),
        ({"recipe": load_recipe("samed")}, "missing"),
        ({"random_encoder": True}, "not on this run's base model"),
    ],
)
def test_an_adapter_that_does_not_fit_cannot_be_the_start(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    plans = make_tiny_plans(training={"lora_rank": 2})
    start = write(tmp_path / "fold_0", trained())
    with pytest.raises(FedsamError, match=rf"cannot begin with this adapter[\s\S]*{named}[\s\S]*leave --init out"):
        setup(**{"plans": plans, "start": start} | changes).build()


def test_a_start_that_is_no_trained_fold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="holds no finished model"):
        setup(start=tmp_path).agreement()
    start = write(tmp_path / "fold_0", trained())
    edit(start / BUNDLE_FILE, adapter_sha256="/../../x")
    with pytest.raises(FedsamError, match="adapter_sha256"):
        setup(start=start).agreement()
