"""Documents from outside: whatever stands in them, a clear refusal, or a document that can be hashed, saved and read again."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import parse_json
from fedsam_pipeline.specs.bundle_index import CARD_FILE, FOLD_FILES, BundleIndex
from fedsam_pipeline.specs.document import Document
from fedsam_pipeline.specs.fingerprint import CASE_MASS, Fingerprint
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.postprocessing import Postprocessing
from fedsam_pipeline.specs.prompts import PromptsFile
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from tests.conftest import make_tiny_plans
from tests.mutations import JUNK, changed_once, mutated_bytes, mutated_json

CHANNELS = [{"name": "CT", "scheme": "ct", "clip_low": -100.0, "clip_high": 300.0, "mean": 20.0, "std": 50.0}]
FINGERPRINT = {
    "schema_version": 2,
    "dataset_name": "Dataset001_Demo",
    "labels": {"background": 0, "organ": 1},
    "privacy_floor": 1,
    "num_sites": 1,
    "num_cases": 3,
    **{key: [{"100": 3}, {"96..127": 1, "200": 2}, {"200": 3}] for key in ("spacing", "size", "extent")},
    "kept_fraction": {"1000": 3},
    "channels": [
        {"name": "MRI", "moments": {"weight": 3, "mean": "1.5", "m2": "0.25"}, "histogram": {"-5": CASE_MASS, "1024..2047": 2 * CASE_MASS}}
    ],
    "classes": {"organ": {"num_cases": 2, "volume_mm3": {"7": 2}, "components": {"1": 2}, "extent_mm": [{"3": 2}, {"3": 2}, {"3..4": 2}]}},
}
MEMBERS = [
    {"name": name, "num_bytes": 3, "file_sha256": "a" * 64} for name in sorted([CARD_FILE, *(f"fold_0/{file}" for file in FOLD_FILES)])
]
VALID: dict[type[Document], dict[str, Any]] = {
    Plans: make_tiny_plans(channels=CHANNELS, why={"image_size": "because"}).to_dict(),
    Recipe: load_recipe("flap_sam").to_dict(),
    Fingerprint: FINGERPRINT,
    PromptsFile: {
        "coordinates": "RAS",
        "cases": {"a": {"organ": {"boxes": [[[0, 1, 2], [3.5, 4, 5]]], "points": [[0, 0, 0]], "negative_points": []}}},
    },
    Manifest: {
        "recipe": "r",
        "base_model": "b",
        "tensors": [{"name": name, "shape": [2, 3], "dtype": "float32", "travels": "both"} for name in "ab"],
    },
    Postprocessing: {
        "dataset_name": "Dataset001_Demo",
        "plan_sha256": "1" * 64,
        "steps": [{"kind": "fill_holes", "label": "organ"}],
        "decisions": [
            {
                "rule": {"kind": "minimum_volume", "label": "organ", "min_volume_mm3": 5.0},
                "kept": True,
                "mean_delta": 0.1,
                "classes": {"organ": {"delta_sum": 0.5, "num_cases": 5}},
                "why": "better",
            }
        ],
        "sites": ["site_a"],
        "why": {"choice": "because"},
    },
    BundleIndex: {
        "made_with": "0.1.0",
        "dataset_name": "Dataset001_Demo",
        "configuration": "a__b__main",
        "run": "federated__fedavg__seed0",
        "base_model": "tiny_random",
        "base_weights": None,
        "folds": ["0"],
        "members": MEMBERS,
    },
}
KINDS = [pytest.param(kind, id=kind.__name__) for kind in VALID]
quick = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("kind", KINDS)
def test_the_valid_ones_are_valid(kind: type[Document]) -> None:
    document = kind.from_dict(VALID[kind])
    assert kind.from_dict(document.to_dict()).sha256() == document.sha256()


@pytest.mark.parametrize("kind", KINDS)
def test_junk_in_every_place_is_refused_or_can_be_used(kind: type[Document]) -> None:
    for where, changed in changed_once(VALID[kind]):
        try:
            check(kind, changed)
        except Exception as error:
            raise AssertionError(where) from error


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(data=st.data())
def test_several_changes_at_once_are_refused_or_can_be_used(kind: type[Document], data: st.DataObject) -> None:
    check(kind, data.draw(mutated_json(VALID[kind])))


def check(kind: type[Document], changed: Any) -> None:
    """As it comes: through JSON."""
    try:
        document = kind.from_dict(parse_json(json.dumps(changed)), path="document.json")
    except ValueError as error:
        assert "surrogates not allowed" in str(error)
        return
    except FedsamError as error:
        assert len(str(error)) < 100_000
        return
    assert kind.from_dict(json.loads(json.dumps(document.to_dict()))).sha256() == document.sha256()


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: f"{junk!r:.20}" if not isinstance(junk, int) or junk < 2**64 else "huge")
@pytest.mark.parametrize("kind", KINDS)
def test_junk_in_place_of_a_document_is_refused(kind: type[Document], junk: Any) -> None:
    with pytest.raises(FedsamError):
        kind.from_dict(junk)


@quick
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "plans.json"
    path.write_bytes(data.draw(mutated_bytes(json.dumps(VALID[Plans]).encode())))
    try:
        Plans.load(path).sha256()
    except FedsamError as error:
        assert str(path) in str(error)


@quick
@given(data=st.data())
def test_a_damaged_recipe_file_is_refused_or_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "mine.toml"
    text = 'name = "mine"\ntitle = "t"\npaper = "p"\nencoders = ["vit"]\n[lora]\nrank = 4\nscale = 1.0e0\ntargets = ["q"]\n'
    path.write_bytes(data.draw(mutated_bytes(text.encode() + b"[loss]\ndice_weight = 0x1F\nwhen = 2026-11-21T20:20:00Z\n")))
    with pytest.raises(FedsamError, match=r"mine\.toml"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "a = " + "{b=" * 5000,
        f"name = 0x{'f' * 9000}",
        f"a = {'9' * 9000}",
        "a." * 3000 + "b = 1",
        "a = 2026-99-99",
        "a = 25:00:00",
    ],
    ids=["lists", "tables", "hexadecimal", "decimal", "dotted", "date", "time"],
)
def test_a_recipe_file_that_no_one_would_write(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(FedsamError, match=r"mine\.toml"):
        load_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("bracket", ["[]", '{"a":}'])
def test_nesting_of_any_depth_is_refused(bracket: str, tmp_path: Path) -> None:
    """Near the interpreter's limit a value could be read, and be too deep for what comes after."""
    path, middle = tmp_path / "prompts.json", len(bracket) - 1
    for depth in [*range(1, 110, 9), *range(sys.getrecursionlimit() - 100, sys.getrecursionlimit(), 7), 10**5]:
        nested = bracket[:middle] * depth + "1" + bracket[middle:] * depth
        path.write_text(f'{{"coordinates": {nested}, "cases": {nested}}}')
        with pytest.raises(FedsamError):
            PromptsFile.load(path)
