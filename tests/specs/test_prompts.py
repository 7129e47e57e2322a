"""``prompts.json`` as a user writes it: read, turned, refused."""

from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import write_json
from fedsam_pipeline.specs.prompts import ClassPrompts, PromptsFile

CASES = {"a": {"organ": {"boxes": [[[1, -2, 3], [4, 5.5, 6]]]}, "lesion": {"points": [[0, 1, 2]], "negative_points": [[3, 0, 1]]}}}


def test_ras_is_turned_to_lps_and_lps_is_left_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "prompts.json", {"schema_version": 1, "coordinates": "RAS", "cases": CASES})
    found = PromptsFile.load(tmp_path / "prompts.json").of("a")
    assert found["organ"].boxes == (((-1.0, 2.0, 3.0), (-4.0, -5.5, 6.0)),)
    assert found["lesion"].points == ((0.0, -1.0, 2.0),)
    assert found["lesion"].negative_points == ((-3.0, 0.0, 1.0),)
    assert found["organ"].turned() == ClassPrompts.model_validate(CASES["a"]["organ"])
    lps = PromptsFile.from_dict({"coordinates": "LPS", "cases": CASES})
    assert lps.of("a")["organ"].boxes == (((1.0, -2.0, 3.0), (4.0, 5.5, 6.0)),)
    assert lps.of("b") == {}


def test_every_fault_of_a_file_is_named() -> None:
    cases = {"a": {"organ": {"boxes": [[[1, 2, 3]]], "point": []}}, "b": {"organ": {"points": [[1, 2, "x"]]}}}
    with pytest.raises(FedsamError) as caught:
        PromptsFile.from_dict({"cases": cases}, path="prompts.json")
    message = str(caught.value)
    assert "coordinates: missing" in message
    assert "cases.a.organ.boxes.0.1: missing" in message
    assert "cases.a.organ.point: unknown key" in message
    assert "cases.b.organ.points.0.2: " in message


def test_a_case_or_a_class_without_a_prompt_is_refused() -> None:
    with pytest.raises(FedsamError) as caught:
        PromptsFile.from_dict({"coordinates": "LPS", "cases": {"a": {}, "b": {"organ": {"boxes": []}}}})
    assert "cases.a: no class" in str(caught.value)
    assert "cases.b.organ: neither boxes" in str(caught.value)
    with pytest.raises(FedsamError, match="cases"):
        PromptsFile.from_dict({"coordinates": "LPS", "cases": {}})
    with pytest.raises(FedsamError, match="coordinates"):
        PromptsFile.from_dict({"coordinates": "RAI", "cases": CASES})
