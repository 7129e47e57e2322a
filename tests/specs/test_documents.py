"""Plans, recipes and manifests as a user meets them: saved, edited by hand, loaded, refused."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.document import Rule
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry
from fedsam_pipeline.specs.plans import PREPROCESSING_KEYS, Plans
from fedsam_pipeline.specs.recipe import Recipe, load_recipe, recipe_names
from tests.conftest import make_tiny_plans


def refused_plans(values: dict[str, Any]) -> FedsamError:
    with pytest.raises(FedsamError, match="not a valid Plans document") as caught:
        Plans.from_dict(values, path="plans.json")
    return caught.value


def test_a_saved_plan_loads_equal_with_the_same_hash(tmp_path: Path) -> None:
    plans = make_tiny_plans(target_spacing=(5.0, 1 / 3, 0.8), why={"image_size": "because"})
    plans.save(tmp_path / "plans.json")
    loaded = Plans.load(tmp_path / "plans.json")
    assert loaded.sha256() == plans.sha256()
    assert loaded.preprocessing_sha256() == plans.preprocessing_sha256()
    assert loaded.target_spacing == (5.0, 0.333333333, 0.8)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plans.json").read_bytes()


def test_every_fault_is_listed_at_once() -> None:
    values = make_tiny_plans().to_dict()
    del values["slab_depth"]
    values |= {"imagesize": 28, "slice_axis": 3, "window_overlap": 1.0, "target_spacing": [1.0, -1.0, 1.0]}
    values["training"]["rounds"] = 0
    values["channels"][0]["scheme"] = "minmax"
    message = str(refused_plans(values))
    for where in ("slab_depth", "imagesize", "slice_axis", "window_overlap", "target_spacing.1", "training.rounds", "channels.0.scheme"):
        assert f"{where}: " in message
    assert "plans.json" in message
    assert "fix:" in message


def test_an_unknown_key_is_named() -> None:
    assert refused_plans(make_tiny_plans().to_dict() | {"slab_dept": 3}).found == "slab_dept: unknown key, did you mean slab_depth?"
    values = make_tiny_plans().to_dict()
    values["training"]["learning_rat"] = 1
    values["channels"][0]["schema"] = "ct"
    values["prompts"]["zzz"] = None
    found = str(refused_plans(values).found)
    assert "training.learning_rat: unknown key, did you mean learning_rate?" in found
    assert "channels.0.schema: unknown key, did you mean scheme?" in found
    assert "prompts.zzz: unknown key\n" in found + "\n"


def test_wrong_types_missing_keys_and_contradictions_are_listed_together() -> None:
    values = make_tiny_plans().to_dict()
    del values["window"], values["prompts"]["mode"]
    values |= {"image_size": "28", "slab_depth": 3, "labels": {"background": 0, "organ": 2}, "slice_mixing": "none", "extra": 1}
    values["training"]["rounds"] = True
    values["channels"][0] = {"name": "CT", "scheme": "ct", "clip_low": 5, "clip_high": 1, "mean": "0"}
    found = str(refused_plans(values).found).splitlines()
    assert found[0] == f"{len(found) - 1} faults"
    assert sorted(line.strip() for line in found[1:]) == [
        'channels.0.mean: Input should be a valid number, found "0"',
        "extra: unknown key",
        'image_size: Input should be a valid integer, found "28"',
        "labels: values must be consecutive from 0, found [0, 2]",
        "prompts.mode: missing",
        "slice_mixing: none, but encoder_inputs take terms of other slices (offset is not 0)",
        "training.rounds: Input should be a valid integer, found true",
        "window: missing",
    ]
    values["training"]["rounds"], values["channels"][0]["mean"] = 2, 0
    shown = str(refused_plans(values).found)  # judged now that training and the channel are sound
    assert "slab_depth: 3 does not divide training.effective_batch, 4" in shown
    assert "channels.0.scheme: ct needs clip_low, clip_high, mean and std; std missing" in shown
    assert "channels.0.clip_low: 5 is not below clip_high, 1" in shown


def test_rules_from_outside_are_judged_with_the_others() -> None:
    def small(plans: Plans) -> list[str]:
        return [] if plans.image_size < 20 else ["image_size: too large for this test"]

    rules = (Rule(("image_size",), small),)
    values = make_tiny_plans().to_dict()
    with pytest.raises(FedsamError) as caught:
        Plans.from_dict(values, rules=rules)
    assert caught.value.found == "image_size: too large for this test"
    with pytest.raises(FedsamError) as caught:
        Plans.from_dict(values | {"slab_depth": 0}, rules=rules)
    assert "2 faults" in str(caught.value.found) and "too large" in str(caught.value.found)
    with pytest.raises(FedsamError) as caught:
        Plans.from_dict(values | {"slab_depth": 3}, rules=rules)
    assert "does not divide" in str(caught.value.found) and "too large" in str(caught.value.found)
    assert Plans.from_dict(values | {"image_size": 14}, rules=rules).image_size == 14
    with pytest.raises(FedsamError, match=r"\(document\): "):
        Plans.from_dict([], rules=rules)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"organ": 0, "lesion": 1}}, "labels: background must be 0"),
        ({"labels": {"background": 0, "organ": 1, "lesion": 3}}, r"labels: values must be consecutive from 0, found \[0, 1, 3\]"),
        ({"encoder_inputs": [[{"channel": 1, "offset": 0}]] * 3}, r"encoder_inputs\.0: there is no channel 1"),
        ({"encoder_inputs": [[], [], []]}, r"encoder_inputs\.2: every input needs terms"),
        (
            {"channels": [{"name": "CT", "scheme": "ct", "clip_low": -100.0}]},
            r"channels\.0\.scheme: ct needs [^;]*; clip_high, mean, std missing",
        ),
        ({"slab_depth": 3}, "slab_depth: 3 does not divide training.effective_batch, 4"),
        ({"slab_depth": 8}, "slab_depth: 8 does not divide"),
        ({"slice_mixing": "none"}, "slice_mixing: none, but"),
        ({"channels": []}, "channels: "),
        ({"schema_version": 2}, "schema_version: "),
        ({"target_spacing": [1.0, float("nan"), 1.0]}, "target_spacing.1: "),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FedsamError, match=words):
        Plans.from_dict(make_tiny_plans().to_dict() | changes)


def test_a_document_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_tiny_plans().image_size = 56  # type: ignore[misc]


def test_the_hash_does_not_depend_on_spelling(tmp_path: Path) -> None:
    plans = make_tiny_plans()
    values = plans.to_dict()
    values["target_spacing"] = [1, 1, 1.0000000001]  # whole numbers, and digits beyond the ninth
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(dict(reversed(values.items())), indent=7), encoding="utf-8")
    assert Plans.load(path).sha256() == plans.sha256()


def test_every_key_of_the_plan_enters_its_hash() -> None:
    plans = make_tiny_plans()
    others: dict[str, Any] = {
        "image_size": 56,
        "why": {"image_size": "because"},
        "fingerprint_sha256": "1" * 64,
        "training": {"rounds": 3},
        "target_spacing": (1.0, 1.0, 1.00000001),
    }
    hashes = {make_tiny_plans(**{key: value}).sha256() for key, value in others.items()}
    assert len(hashes | {plans.sha256()}) == len(others) + 1


def test_the_preprocessing_hash_follows_the_preprocessing_keys_only() -> None:
    signature = make_tiny_plans().preprocessing_sha256()
    assert PREPROCESSING_KEYS == ("target_spacing", "slice_axis", "channels", "resampling")
    irrelevant: dict[str, Any] = {"image_size": 56, "slab_depth": 4, "training": {"rounds": 9}, "why": {"a": "b"}, "plans_name": "mine"}
    assert make_tiny_plans(**irrelevant).preprocessing_sha256() == signature
    relevant: list[dict[str, Any]] = [
        {"target_spacing": (1.0, 1.0, 2.0)},
        {"slice_axis": 1},
        {"channels": [{"name": "MRI", "scheme": "zscore_nonzero"}]},
        {"resampling": {"image_order": 3, "image_order_coarse_axis": 1, "label_order": 1}},
    ]
    assert all(make_tiny_plans(**changes).preprocessing_sha256() != signature for changes in relevant)


def test_what_a_plan_says_of_classes_and_neighbours() -> None:
    plans = make_tiny_plans(encoder_inputs=[[{"channel": 0, "offset": -3}], [{"channel": 0, "offset": 0}], [{"channel": 0, "offset": 1}]])
    assert plans.num_classes == 3
    assert plans.max_offset == 3


def test_a_missing_or_broken_file_says_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match=r"a file is missing[\s\S]*plan again"):
        Plans.load(tmp_path / "plans.json", fix="plan again")
    (tmp_path / "plans.json").write_text('{"image_size": 28,')
    with pytest.raises(FedsamError, match=r"cannot be read as JSON[\s\S]*plan again"):
        Plans.load(tmp_path / "plans.json", fix="plan again")
    (tmp_path / "plans.json").write_text("[]")
    with pytest.raises(FedsamError, match=r"not a valid Plans document[\s\S]*\(document\): [\s\S]*plan again"):
        Plans.load(tmp_path / "plans.json", fix="plan again")


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipes_of_the_package_load_under_their_own_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.title and recipe.paper
    assert Recipe.from_dict(recipe.to_dict()).sha256() == recipe.sha256()


def test_flap_sam_is_there() -> None:
    assert "flap_sam" in recipe_names()


def own_recipe(folder: Path, *changes: tuple[str, str]) -> Path:
    text = (files("fedsam_pipeline.plans") / "recipes" / "flap_sam.toml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_users_own_recipe_loads_by_path(tmp_path: Path) -> None:
    recipe = load_recipe(str(own_recipe(tmp_path, ('name = "flap_sam"', 'name = "mine"'), ('rank = "auto"', "rank = 32"))))
    assert recipe.name == "mine"
    assert recipe.lora is not None
    assert recipe.lora.rank == 32
    assert recipe.sha256() != load_recipe("flap_sam").sha256()


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(FedsamError, match=r"unknown recipe[\s\S]*flap_sm[\s\S]*one of [\s\S]*flap_sam"):
        load_recipe("flap_sm")


def test_a_recipe_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match=r"a recipe file cannot be read[\s\S]*gone.toml"):
        load_recipe(str(tmp_path / "gone.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FedsamError, match=r"a recipe file cannot be read[\s\S]*binary.toml"):
        load_recipe(str(tmp_path / "binary.toml"))


def test_broken_toml_names_file_and_line(tmp_path: Path) -> None:
    path = own_recipe(tmp_path, ("[loss]", "[loss"))
    with pytest.raises(FedsamError, match=r"a recipe file is not TOML[\s\S]*mine.toml[\s\S]*line"):
        load_recipe(str(path))


def test_every_fault_of_a_recipe_is_listed_at_once(tmp_path: Path) -> None:
    path = own_recipe(
        tmp_path,
        ("dice_weight = 1.0", "dice_weight = -1.0\ndice = 1"),
        ("betas = [0.9, 0.999]", "betas = [0.9, 1.5]"),
        ('targets = ["q", "v"]', 'targets = ["x"]'),
        ('federated = ["*"]', "federated = []"),
        ('strategy = "fedavg"', 'strategy = "average"'),
    )
    with pytest.raises(FedsamError, match="not a valid Recipe document") as caught:
        load_recipe(str(path))
    for where in ("loss.dice_weight", "loss.dice", "optimizer.betas.1", "lora.targets.0", "parameters.federated", "aggregation.strategy"):
        assert f"{where}: " in str(caught.value)


def entry(name: str, shape: tuple[int, ...], travels: str = "both") -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": "float32", "travels": travels}


def test_a_manifest_counts_what_trains_and_what_travels(tmp_path: Path) -> None:
    tensors = [entry("a", (2, 3)), entry("b", (5,), "none"), entry("c", ())]
    manifest = Manifest.from_dict({"recipe": "r", "base_model": "m", "tensors": tensors})
    assert manifest.trained_names == ("a", "b", "c")
    assert [each.name for each in manifest.federated] == ["a", "c"]
    assert (manifest.trained_parameters, manifest.federated_parameters) == (12, 7)
    assert TensorEntry.model_validate(entry("d", (4, 5, 6))).num_elements == 120
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == manifest


def test_every_fault_of_a_manifest_is_listed_at_once() -> None:
    tensors = [entry("a", (2,), "up"), entry("b", (2,)) | {"dtype": "float64"}, {"name": "c"}]
    with pytest.raises(FedsamError, match="not a valid Manifest document") as caught:
        Manifest.from_dict({"recipe": "r", "tensors": tensors})
    for where in ("base_model", "tensors.0.travels", "tensors.1.dtype", "tensors.2.shape", "tensors.2.travels"):
        assert f"{where}: " in str(caught.value)


def test_a_manifest_without_tensors_is_refused() -> None:
    with pytest.raises(FedsamError, match="tensors: "):
        Manifest.from_dict({"recipe": "r", "base_model": "m", "tensors": []})


def test_what_only_a_person_sets_changes_no_plan_that_leaves_it_out(tmp_path: Path) -> None:
    plans = make_tiny_plans()
    assert "self_prompt" not in plans.to_dict()["prompts"]
    with pytest.raises(FedsamError, match=r"prompts\.self_prompt: true, but a model of mode auto takes no prompts"):
        Plans.from_dict(plans.to_dict() | {"prompts": plans.prompts.to_dict() | {"self_prompt": True}})
    boxes = {"mode": "box", "jitter_mm": 1.0, "dropout": 0.5}
    without, with_it = (Plans.from_dict(plans.to_dict() | {"prompts": boxes | each}) for each in ({}, {"self_prompt": True}))
    assert without.sha256() == Plans.from_dict(without.to_dict() | {"prompts": boxes | {"self_prompt": False}}).sha256() != with_it.sha256()
    with_it.save(tmp_path / "plans.json")
    assert Plans.load(tmp_path / "plans.json") == with_it
