"""Plans of coarsened fingerprints: what the same cases would have given lies within what is printed."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.planning.grids import intensity_positions, log_position
from fedsam_pipeline.planning.measures import CaseMeasures, ChannelMeasures, SiteMeasures
from fedsam_pipeline.planning.merge import merge_fingerprints
from fedsam_pipeline.planning.objects import object_extents
from fedsam_pipeline.planning.precision import Range, known_to, object_ranges, precision_notes, size_ranges, spacing_ranges
from fedsam_pipeline.planning.privacy import release
from fedsam_pipeline.planning.rules import make_plan, median_size
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.specs.fingerprint import CASE_MASS, Bin, Fingerprint
from fedsam_pipeline.specs.plans import Plans

LITE = base_model_spec("lite_medsam")
RULES = load_thresholds()
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def ct_case(generator: np.random.Generator, thickness: Sequence[float], slices: Sequence[int]) -> CaseMeasures:
    """Numbers as a CT would give them."""
    spacing = (float(generator.choice(thickness)), *[float(generator.uniform(0.6, 0.95))] * 2)
    size = (int(generator.choice(slices)), 512, 512)
    hounsfield = generator.normal(generator.normal(60, 15), 40, 100).round()
    positions, counts = np.unique(intensity_positions(hounsfield), return_counts=True)
    masses = (counts * (CASE_MASS // 100)).astype(np.int32)
    extents = [log_position(min(float(generator.uniform(20, 90)), voxels * length)) for voxels, length in zip(size, spacing, strict=True)]
    return CaseMeasures(
        (
            *(round(1000 * length) for length in spacing),
            *size,
            *(round(10 * voxels * length) for voxels, length in zip(size, spacing, strict=True)),
            1000,
        ),
        (ChannelMeasures(float(hounsfield.mean()), float(hounsfield.var()), positions.astype(np.int32), masses),),
        {"organ": (600, 1, *extents), "lesion": (400, 2, *extents)},
    )


def fingerprint(sites: Sequence[Sequence[CaseMeasures]], floor: int) -> Fingerprint:
    documents = {}
    for number, cases in enumerate(sites):
        site = SiteMeasures("Dataset001_Test", LABELS, ("CT",))
        for case in cases:
            site.add(case)
        document = release(site, floor).document
        assert isinstance(document, Fingerprint)
        documents[f"site_{number}"] = document
    return merge_fingerprints(documents)


def clips(plans: Plans) -> tuple[float, float]:
    low, high = plans.channels[0].clip_low, plans.channels[0].clip_high
    assert low is not None and high is not None
    return low, high


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(5, 10), min_size=1, max_size=3),
    st.integers(2, 5),
    st.sampled_from([(5.0,), (1.0, 3.0, 5.0), (2.0, 2.5, 8.0), (0.7, 0.8)]),
    st.sampled_from([(40,), (30, 60, 90), (100, 300, 511)]),
)
def test_the_pooled_plan_lies_within_what_is_printed(seed: int, sizes: list[int], floor: int, thickness: object, slices: object) -> None:
    assert isinstance(thickness, tuple) and isinstance(slices, tuple)
    generator = np.random.default_rng(seed)
    sites = [[ct_case(generator, thickness, slices) for _ in range(number)] for number in sizes]
    exact, coarse = fingerprint(sites, 1), fingerprint(sites, floor)
    pooled, released = make_plan(exact, LITE), make_plan(coarse, LITE)
    for true, found, error in zip(pooled.target_spacing, released.target_spacing, printed(released, "target_spacing", 3), strict=True):
        assert abs(true - found) <= error + 1e-8
    for true, each in zip(
        median_size(exact, pooled.target_spacing), size_ranges(coarse, spacing_ranges(coarse, RULES.spacing)), strict=True
    ):
        assert each.low * (1 - 1e-8) <= true <= each.high * (1 + 1e-8)
    for true, found, error in zip(clips(pooled), clips(released), printed(released, "channels.0", 2), strict=True):
        assert abs(true - found) <= error * (1 + 1e-9) + 1e-6
    for true_extent, extent_range in zip(object_extents(exact.classes.values()), object_ranges(coarse, coarse.classes), strict=True):
        assert true_extent is not None and extent_range is not None
        assert extent_range.low * (1 - 1e-9) <= true_extent <= extent_range.high * (1 + 1e-9)
    assert pooled.channels[0].mean == pytest.approx(released.channels[0].mean, rel=1e-9)


def test_a_spacing_that_the_user_set_is_known_exactly() -> None:
    generator = np.random.default_rng(0)
    coarse = fingerprint([[ct_case(generator, (2.0, 2.5, 8.0), (30, 60, 90)) for _ in range(7)]], 5)
    planned, chosen = make_plan(coarse, LITE), make_plan(coarse, LITE, plans_name="mine", target_spacing=(6.0, 6.0, 6.0))
    assert chosen.target_spacing == (6.0, 6.0, 6.0)
    assert "known to" in planned.why["target_spacing"]
    assert "known to" not in chosen.why["target_spacing"].split("; the rule takes")[0]
    assert chosen.why["target_spacing"].startswith("set by the user")
    assert chosen.image_size < planned.image_size  # the same tissue in fewer voxels
    again = make_plan(coarse, LITE, target_spacing=planned.target_spacing)
    assert again.to_dict() | {"why": 0} == planned.to_dict() | {"why": 0}


def printed(plans: Plans, name: str, number: int) -> list[float]:
    """The errors in the reason of a value; 0 where none is printed."""
    found = re.search(r"known to \+-([0-9.e+x -]+?) (?:mm|at)", plans.why[name])
    if found is None:
        return [0.0] * number
    return [float(text) for text in found[1].split(" x ")]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_where_nothing_was_coarsened_the_plan_is_the_pooled_one(seed: int, sizes: list[int]) -> None:
    generator = np.random.default_rng(seed)
    sites = [[ct_case(generator, (1.0, 5.0), (40, 80)) for _ in range(number)] for number in sizes]
    merged = fingerprint(sites, 1)
    pooled = fingerprint([[case for cases in sites for case in cases]], 1).model_copy(update={"num_sites": len(sites)})
    one, other = make_plan(merged, LITE), make_plan(pooled, LITE)
    rounded = {"fingerprint_sha256", "why"}  # the hash has the moments' last bits, and a mean of 61.455 may read 61.45 or 61.46
    assert one.model_dump(exclude=rounded) == other.model_dump(exclude=rounded)
    assert one.why.keys() == other.why.keys()
    assert {name for name in one.why if one.why[name] != other.why[name]} <= {"channels.0"}
    assert not any("privacy floor" in reason for reason in one.why.values())


def test_enough_equal_cases_leave_the_plan_as_it_was() -> None:
    case = ct_case(np.random.default_rng(0), (5.0,), (60,))
    sites = [[case] * 6, [case] * 9]
    exact, coarse = fingerprint(sites, 1), fingerprint(sites, 5)
    assert coarse.model_dump(exclude={"privacy_floor"}) == exact.model_dump(exclude={"privacy_floor"})
    one, other = make_plan(exact, LITE), make_plan(coarse, LITE)
    assert one.model_dump(exclude={"fingerprint_sha256"}) == other.model_dump(exclude={"fingerprint_sha256"})


READ_A_NUMBER = {"target_spacing", "slice_axis", "image_size", "window", "slice_mixing", "slab_depth", "channels.0"} | {
    f"{group}.{name}"
    for group, names in (("training", ("effective_batch", "rounds")), ("prompts", ("mode", "jitter_mm", "dropout")))
    for name in names
}
"""planned values whose rule reads counts that the floor may coarsen; the others read the number of cases, planned values or nothing"""


def coarsened() -> Fingerprint:
    generator = np.random.default_rng(1)
    return fingerprint([[ct_case(generator, (1.0, 3.0, 5.0), (30, 60, 90)) for _ in range(6)]], 5)


def test_every_value_that_reads_a_coarsened_number_says_what_the_floor_leaves_open() -> None:
    coarse = coarsened()
    plans = make_plan(coarse, LITE)
    notes = precision_notes(coarse, plans, median_size(coarse, plans.target_spacing), RULES)
    assert set(notes) == READ_A_NUMBER
    assert {name for name, reason in plans.why.items() if "the privacy floor" in reason} == READ_A_NUMBER
    assert all(notes[name] in plans.why[name] for name in notes)
    assert notes["slice_axis"].endswith("mm of field of view") and " mm of spacing and +-" in notes["slice_axis"]
    assert notes["training.rounds"].endswith("slices a site")


def test_a_prompt_mode_that_the_thresholds_fix_reads_no_number() -> None:
    coarse = coarsened()
    fixed = RULES.model_copy(update={"prompts": RULES.prompts.model_copy(update={"mode": "box"})})
    assert "the privacy floor" not in make_plan(coarse, LITE, thresholds=fixed).why["prompts.mode"]


def test_no_object_is_longer_than_the_field_of_view() -> None:
    case = ct_case(np.random.default_rng(0), (1.0,), (40,))
    whole = fingerprint([[case] * 6], 5)
    wide = {Bin(log_position(0.01), log_position(5000)): 6}
    organ = whole.classes["organ"].model_copy(update={"extent_mm": (wide, wide, wide)})
    coarse = whole.model_copy(update={"classes": {"organ": organ}})
    found = object_ranges(coarse, ["organ"])[0]
    assert found is not None and found.low < 0.02
    assert 40 <= found.high <= 40 * 1.04


@pytest.mark.parametrize(
    ("values", "ranges", "expected"),
    [
        ([1.0, 2.0], [Range(1.0, 1.0), Range(2.0, 2.0)], ""),
        ([1.0, 2.0], [Range(0.96, 1.01), Range(2.0, 2.0)], "known to +-0.04 x 0 mm"),
        ([3.0], [Range(0.0, 15.34)], "known to +-13 mm"),
        ([3.0], [Range(3.0, 15.01)], "known to +-13 mm"),  # rounded up
        ([1 / 3], [Range(0.333333333, 0.333333333)], ""),  # nine digits
    ],
)
def test_known_to(values: list[float], ranges: list[Range], expected: str) -> None:
    assert known_to(values, ranges, "mm") == expected


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e9))
def test_printed_errors_are_never_too_small(value: float, error: float) -> None:
    assume(error > 1e-6 * value)
    text = known_to([value], [Range(value, value + error)], "mm")
    assert error * (1 - 1e-6) <= float(text.split()[2].removeprefix("+-")) <= error * 1.11 + 1e-9
