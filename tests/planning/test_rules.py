"""Rules of geometry and intensity at their boundaries, and the plan as a whole."""

from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.planning import geometry_rules as geometry
from fedsam_pipeline.planning import intensity_rules as intensity
from fedsam_pipeline.planning.grids import exact_counts, intensity_positions
from fedsam_pipeline.planning.rules import make_plan
from fedsam_pipeline.planning.table import BY_HAND, NOT_PLANNED, plan_table, planned_values
from fedsam_pipeline.planning.thresholds import Thresholds, parse_thresholds
from fedsam_pipeline.specs.fingerprint import CASE_MASS, Bin, ChannelFingerprint, IntensityMoments
from fedsam_pipeline.specs.plans import Plans
from tests.planning.fingerprints import random_site, stated

LITE, VIT = base_model_spec("lite_medsam"), base_model_spec("vit_b")


def test_spacing_is_the_median(rules: Thresholds) -> None:
    found = geometry.target_spacing(stated(spacing=({3000: 4, 4000: 6}, {500: 10}, {700: 5, 800: 5})), rules.spacing)
    assert found.value == (4.0, 0.5, 0.75)


@pytest.mark.parametrize(
    ("coarse", "size", "expected"),
    [
        ({2000: 2, 5000: 8}, (20, 200, 200), 2.0),  # coarse and small: the 10th percentile
        ({3000: 10}, (20, 200, 200), 3.0),  # exactly three times is not more than three times
        ({2000: 2, 5000: 8}, (70, 200, 200), 5.0),  # coarse but with many slices: the median
        ({500: 2, 5000: 8}, (20, 200, 200), 1.0),  # never finer than the plane
    ],
)
def test_spacing_of_an_anisotropic_axis(coarse: dict[int, int], size: tuple[int, int, int], expected: float, rules: Thresholds) -> None:
    found = geometry.target_spacing(stated(spacing=(coarse, {1000: 10}, {1000: 10}), size=size), rules.spacing)
    assert found.value == (expected, 1.0, 1.0)


@pytest.mark.parametrize(
    ("spacing", "size", "expected"),
    [
        ((1.6, 1.0, 1.0), (300, 40, 40), 0),  # coarse wins over everything
        ((1.5, 1.0, 1.0), (300, 40, 60), 1),  # exactly the ratio is not above it
        ((1.0, 1.0, 4.0), (50, 50, 50), 2),
        ((1.0, 1.0, 1.0), (36, 50, 35), 0),  # within 5 %: the first
        ((1.0, 1.0, 1.0), (37, 50, 35), 2),
        ((1.0, 1.0, 1.0), (50, 50, 50), 0),
    ],
)
def test_slice_axis(spacing: Any, size: Any, expected: int, rules: Thresholds) -> None:
    assert geometry.slice_axis(spacing, size, rules.slice_axis).value == expected


@pytest.mark.parametrize(
    ("plane", "base", "expected"),
    [
        ((50.0, 35.0), LITE, 56),
        ((56.0, 56.0), LITE, 56),
        ((58.8, 40.0), LITE, 56),  # 5 % more: still the smaller one
        ((58.9, 40.0), LITE, 112),
        ((3.0, 3.0), LITE, 56),
        ((224.0, 200.0), LITE, 224),
        ((512.0, 512.0), LITE, 224),  # capped
        ((50.0, 35.0), VIT, 224),
        ((300.0, 300.0), VIT, 448),
        ((1000.0, 300.0), VIT, 448),
    ],
)
def test_image_size(plane: Any, base: Any, expected: int, rules: Thresholds) -> None:
    decision = geometry.image_size(plane, base, rules.image_size)
    assert decision.value == expected
    assert ("capped" in decision.why) == (max(plane) > 470)


def test_a_cap_below_one_window_leaves_one_window(rules: Thresholds) -> None:
    low = rules.image_size.model_copy(update={"max_side": {"tiny_vit": 20, "vit": 20}})
    assert geometry.image_size((90.0, 90.0), LITE, low).value == 56


@pytest.mark.parametrize(
    ("plane", "side", "base", "expected"),
    [
        ((50.0, 35.0), 56, LITE, 56),
        ((28.0, 20.0), 56, LITE, 28),  # exactly twice: magnified
        ((28.5, 20.0), 56, LITE, 56),
        ((50.0, 35.0), 224, VIT, 64),  # rounded up to whole patches
        ((300.0, 300.0), 224, LITE, 224),
    ],
)
def test_window(plane: Any, side: int, base: Any, expected: int, rules: Thresholds) -> None:
    assert geometry.window(plane, side, base, rules.image_size).value == (expected, expected)


@pytest.mark.parametrize(
    ("channels", "spacing", "extent", "expected", "word"),
    [
        (1, (1.0, 1.0, 1.0), 20.0, "neighbours", "same anatomy"),
        (2, (1.0, 1.0, 1.0), 20.0, "mixer", "2 image channels"),
        (2, (4.1, 1.0, 1.0), 20.0, "none", "more than 4"),
        (4, (4.0, 1.0, 1.0), 11.9, "none", "fewer than 3 slices"),
        (1, (4.0, 1.0, 1.0), 20.0, "neighbours", "same anatomy"),
        (1, (4.1, 1.0, 1.0), 20.0, "none", "more than 4"),
        (1, (4.0, 1.0, 1.0), 12.0, "neighbours", "same anatomy"),
        (1, (4.0, 1.0, 1.0), 11.9, "none", "fewer than 3 slices"),
        (1, (4.0, 1.0, 1.0), None, "neighbours", "same anatomy"),
    ],
)
def test_slice_mixing(channels: int, spacing: Any, extent: float | None, expected: str, word: str, rules: Thresholds) -> None:
    decision = geometry.slice_mixing(channels, 0, spacing, extent, rules.slice_mixing)
    assert decision.value == expected
    assert word in decision.why


@pytest.mark.parametrize(
    ("spacing", "extent", "batch", "expected"),
    [
        (1.0, 20.0, 16, 4),
        (5.0, 20.0, 16, 1),
        (2.0, 20.0, 16, 2),
        (0.5, 20.0, 16, 4),
        (1.0, 4.0, 16, 2),
        (1.0, None, 8, 2),
        (1.0, 20.0, 4, 1),
        (0.1, 1.0, 1, 1),
    ],
)
def test_slab_depth(spacing: float, extent: float | None, batch: int, expected: int, rules: Thresholds) -> None:
    four_slabs = rules.slab.model_copy(update={"min_slabs_per_step": 4})
    depth = geometry.slab_depth(spacing, extent, batch, "none", four_slabs, 4).value
    assert depth == expected
    assert batch % depth == 0


def test_a_mixer_has_slices_to_mix(rules: Thresholds) -> None:
    def depth(spacing: float, batch: int, mixing: geometry.SliceMixing) -> int:
        return geometry.slab_depth(spacing, 20.0, batch, mixing, rules.slab, rules.slice_mixing.min_mixed_slices).value

    assert (depth(5.0, 16, "neighbours"), depth(5.0, 16, "mixer")) == (1, 4)
    assert depth(0.5, 64, "mixer") == 8  # already more
    assert depth(5.0, 2, "mixer") == 2  # no more than a step has


def channel(name: str, histogram: dict[int, int] | None = None, std: float = 20.0) -> ChannelFingerprint:
    moments = IntensityMoments(weight=1, mean=90.0, m2=std**2)
    return ChannelFingerprint(name=name, moments=moments, histogram=exact_counts(histogram or {0: CASE_MASS}))


def test_ct_by_name(rules: Thresholds) -> None:
    low, high = intensity_positions(np.array([-100.0, 300.0])).tolist()
    decision = intensity.channel_plan(channel("CT", {low: CASE_MASS // 2, high: CASE_MASS // 2}), exact_counts({100: 1}), rules.intensity)
    plan = decision.value
    assert (plan.scheme, plan.mean, plan.std) == ("ct", 90.0, 20.0)
    assert plan.clip_low == pytest.approx(-100, rel=0.005)
    assert plan.clip_high == pytest.approx(300, rel=0.005)


def test_a_constant_ct_has_a_std_above_zero(rules: Thresholds) -> None:
    plan = intensity.channel_plan(channel("ct", std=0.0), exact_counts({1000: 1}), rules.intensity).value
    assert plan.std == 1e-8
    assert plan.clip_low is not None and plan.clip_high is not None and plan.clip_low < plan.clip_high


def test_both_percentiles_in_one_coarse_bin(rules: Thresholds) -> None:
    low, high = intensity_positions(np.array([-100.0, 300.0])).tolist()
    coarse = channel("CT").model_copy(update={"histogram": {Bin(low, high): CASE_MASS}})
    plan = intensity.channel_plan(coarse, exact_counts({1000: 1}), rules.intensity).value
    assert plan.clip_low == pytest.approx(-100, rel=0.01)
    assert plan.clip_high == pytest.approx(300, rel=0.01)


def test_ct_without_foreground(rules: Thresholds) -> None:
    empty = ChannelFingerprint(name="CT", moments=IntensityMoments(), histogram={})
    with pytest.raises(FedsamError, match="no case has a labelled foreground voxel"):
        intensity.channel_plan(empty, exact_counts({1000: 1}), rules.intensity)


@pytest.mark.parametrize(("kept", "expected"), [(1000, "zscore"), (750, "zscore"), (749, "zscore_nonzero")])
def test_zscore(kept: int, expected: str, rules: Thresholds) -> None:
    assert intensity.channel_plan(channel("T1"), exact_counts({kept: 3}), rules.intensity).value.scheme == expected


@pytest.mark.parametrize(
    ("channels", "mixing", "expected"),
    [
        (1, "neighbours", [[(0, -1)], [(0, 0)], [(0, 1)]]),
        (1, "none", [[(0, 0)], [(0, 0)], [(0, 0)]]),
        (2, "none", [[(0, 0)], [(1, 0)], [(0, 0), (1, 0)]]),
        (3, "none", [[(0, 0)], [(1, 0)], [(2, 0)]]),
        (4, "none", [[(0, 0)], [(1, 0), (2, 0)], [(3, 0)]]),
        (6, "none", [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0), (5, 0)]]),
    ],
)
def test_encoder_inputs(channels: int, mixing: Any, expected: list[list[tuple[int, int]]]) -> None:
    found = intensity.encoder_inputs(channels, mixing).value
    assert [[(term.channel, term.offset) for term in terms] for terms in found] == expected


@pytest.mark.parametrize("channels", [("MRI",), ("CT",), ("T1", "T2"), ("T1", "T2", "FLAIR", "T1c")])
def test_every_planned_value_has_its_reason_and_no_other(channels: tuple[str, ...]) -> None:
    plans = make_plan(stated(channels=channels), LITE)
    expected = {"training." + key for key in type(plans.training).model_fields}
    expected |= {"prompts." + key for key in type(plans.prompts).model_fields} - {BY_HAND}
    expected |= {"resampling." + key for key in type(plans.resampling).model_fields}
    expected |= {f"channels.{number}" for number in range(len(channels))}
    expected |= set(Plans.model_fields) - set(NOT_PLANNED) - {"training", "prompts", "resampling", "channels"}
    assert set(plans.why) == expected == set(planned_values(plans))
    assert all(len(reason) > 10 for reason in plans.why.values())


def test_the_plan_of_the_hippocampus_numbers() -> None:
    plans = make_plan(stated(size=(36, 50, 35), num_cases=208, num_sites=4), LITE)
    assert plans.target_spacing == (1.0, 1.0, 1.0)
    assert (plans.slice_axis, plans.image_size, plans.window, plans.slice_mixing) == (0, 56, (56, 56), "neighbours")
    assert plans.channels[0].scheme == "zscore"
    assert plans.training.effective_batch % plans.slab_depth == 0
    assert plans.training.lora_rank == 8


def test_an_anisotropic_ct() -> None:
    spacing = ({5000: 10}, {800: 10}, {800: 10})
    plans = make_plan(stated(spacing=spacing, size=(60, 512, 512), extent=(3000, 4096, 4096), channels=("CT",)), LITE, plans_name="ct")
    assert plans.plans_name == "ct"
    assert (plans.slice_axis, plans.image_size, plans.slab_depth, plans.slice_mixing) == (0, 224, 1, "none")
    assert plans.max_offset == 0
    assert plans.why["slice_axis"] == "z spacing 5 mm > 1.5 x 0.8 mm, so slices are cut along z"


def test_no_foreground_at_all_is_planned_without_objects() -> None:
    fingerprint = stated()
    plans = make_plan(fingerprint.model_copy(update={"classes": {}}), LITE)
    assert plans.prompts.jitter_mm == 0


def test_a_plan_file_gives_the_same_plan_and_signature(tmp_path: Any) -> None:
    plans = make_plan(random_site(range(4), scale=1000 / 3), LITE)
    plans.save(tmp_path / "plans.json")
    again = Plans.load(tmp_path / "plans.json")
    assert again == plans
    assert again.preprocessing_sha256() == plans.preprocessing_sha256()


def test_training_values_never_invalidate_the_store(rules: Thresholds) -> None:
    fingerprint = stated()
    slow = rules.model_copy(update={"training": rules.training.model_copy(update={"passes": 1.0, "local_steps": 7})})
    one, other = make_plan(fingerprint, LITE), make_plan(fingerprint, LITE, thresholds=slow)
    assert one.sha256() != other.sha256()
    assert one.preprocessing_sha256() == other.preprocessing_sha256()


def test_the_table_shows_every_value_and_reason() -> None:
    plans = make_plan(stated(channels=("T1", "T2")), LITE)
    text = plan_table(plans, width=110)
    assert max(len(line) for line in text.splitlines()) <= 110
    joined = " ".join(text.split())
    for name in plans.why:
        assert name in text
    assert "both channels, and their mean" in joined
    assert "c0 | c1 | c0+c1" in text


@pytest.mark.parametrize(
    ("spacing", "offered"), [((1.0, 1.0, 1.0), True), ((1.5, 1.0, 1.2), True), ((0.7, 0.7, 1.1), False), ((5.0, 0.8, 0.8), False)]
)
def test_views_along_all_axes_are_offered_where_voxels_are_nearly_cubes(
    spacing: tuple[float, float, float], offered: bool, rules: Thresholds
) -> None:
    decision = geometry.triplanar(spacing, rules.triplanar)
    assert decision.value is offered
    assert f"{max(spacing) / min(spacing):.4g} times" in decision.why and "1.5 times" in decision.why
    plans = make_plan(stated(), LITE).model_copy(update={"target_spacing": spacing})
    line = next(line for line in plan_table(plans).splitlines() if line.startswith("configurations (-c)"))
    assert ("main, triplanar" in line) is offered


def test_rules_that_are_not_toml() -> None:
    with pytest.raises(FedsamError, match="rules are not TOML"):
        parse_thresholds("a = = 1")


def test_rules_name_every_fault_at_once(rules: Thresholds) -> None:
    with pytest.raises(FedsamError, match="not a valid Thresholds document") as caught:
        parse_thresholds("[spacing]\nanisotropy_ratio = 0.5\nmisspelt = 1\n")
    assert "spacing.anisotropy_ratio" in str(caught.value)
    assert "spacing.misspelt" in str(caught.value)
    whole = rules.model_dump(mode="json")
    for section, change, word in (
        ("intensity", {"ct_clip": [0.9, 0.1]}, "rising quantiles"),
        ("training", {"min_batch": 99}, "must not exceed"),
        ("training", {"lora_ranks": [[5, 4]]}, "start at 1 case"),
    ):
        with pytest.raises(FedsamError, match=word):
            Thresholds.from_dict(whole | {section: whole[section] | change})
