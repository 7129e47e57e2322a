"""A fingerprint comes from another machine: whatever it says, a clear refusal, or a plan; never a crash, a hang or a number without end."""

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import parse_json
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.planning.coverage import coverage_of
from fedsam_pipeline.planning.merge import merge_fingerprints
from fedsam_pipeline.planning.rules import make_plan
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.specs.fingerprint import CASE_MASS, Fingerprint
from tests.mutations import changed_once, mutated_json
from tests.planning.fingerprints import stated

VALID = stated(num_cases=3, num_sites=1).to_dict()
RULES = load_thresholds()


def plans_or_says_why(value: Any) -> None:
    try:
        hostile = Fingerprint.from_dict(parse_json(json.dumps(value)))
        honest = Fingerprint.from_dict(VALID | {key: value[key] for key in ("dataset_name", "labels") if key in value})
        for sites in ({"a": hostile}, {"a": honest, "b": hostile}):
            merged = merge_fingerprints(sites)
            assert make_plan(merged, base_model_spec("lite_medsam"), thresholds=RULES).sha256()
            assert coverage_of(merged, RULES.quality).sha256()
    except FedsamError:
        pass
    except ValueError as error:
        assert "surrogates not allowed" in str(error)


def changed(path: tuple[Any, ...], counts: Any) -> dict[str, Any]:
    """The valid fingerprint with other counts at one place."""
    value = copy.deepcopy(VALID)
    place: Any = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = counts
    return value


ENDS = ("0", "1", "-1", "0..3", str(2**29), str(2**31), f"1..{10**9}", f"{10**18}", f"-{10**18}", "9" * 4000, f"0..{'9' * 4000}")


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end[:24])
@pytest.mark.parametrize("path", [("spacing", 0), ("size", 1), ("extent", 2), ("kept_fraction",)], ids=str)
def test_bins_of_any_place(path: tuple[Any, ...], end: str) -> None:
    plans_or_says_why(changed(path, {end: 3}))


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end[:24])
def test_intensities_of_any_place(end: str) -> None:
    plans_or_says_why(changed(("channels", 0, "histogram"), {end: 3 * CASE_MASS}))


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end[:24])
@pytest.mark.parametrize("key", ["volume_mm3", "components", "extent_mm"])
def test_objects_of_any_size(key: str, end: str) -> None:
    name, measured = next(iter(VALID["classes"].items()))
    counts = {end: measured["num_cases"]}
    plans_or_says_why(changed(("classes", name, key), [counts] * 3 if key == "extent_mm" else counts))


@pytest.mark.parametrize("cases", [10**10, 10**400], ids=["many", "more"])
def test_more_cases_than_there_are_people(cases: int) -> None:
    value = copy.deepcopy(VALID) | {"num_cases": cases, "kept_fraction": {"1000": cases}}
    value |= {key: [{"100": cases}] * 3 for key in ("spacing", "size", "extent")}
    with pytest.raises(FedsamError, match="the fingerprint of site a cannot be"):
        merge_fingerprints({"a": Fingerprint.from_dict(value)})


@pytest.mark.parametrize(("mean", "m2"), [("1e308", "0.0"), ("-1e308", "1e308"), ("0.0", "1e308"), ("1e39", "1.0")])
def test_moments_that_no_image_has(mean: str, m2: str) -> None:
    value = copy.deepcopy(VALID)
    value["channels"][0]["moments"] |= {"mean": mean, "m2": m2}
    with pytest.raises(FedsamError, match="the fingerprint of site a cannot be"):
        merge_fingerprints({"a": Fingerprint.from_dict(value)})


def test_junk_in_every_place() -> None:
    for where, value in changed_once(VALID):
        try:
            plans_or_says_why(value)
        except Exception as error:
            raise AssertionError(where) from error


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_several_changes_at_once(data: st.DataObject) -> None:
    plans_or_says_why(
        data.draw(mutated_json(VALID).filter(lambda value: isinstance(value.get("labels"), dict) and "dataset_name" in value))
    )
