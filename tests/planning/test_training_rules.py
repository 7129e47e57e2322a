"""Rules of training at their boundaries: batch, rounds, learning rate, rank."""

import pytest

from fedsam_pipeline.planning import geometry_rules as geometry
from fedsam_pipeline.planning import training_rules as training
from fedsam_pipeline.planning.thresholds import Thresholds


@pytest.mark.parametrize(
    ("side", "slices", "expected"),
    [
        (56, 7488.0, 16),
        (112, 7488.0, 16),
        (113, 7488.0, 8),
        (224, 7488.0, 4),
        (448, 7488.0, 4),
        (56, 319.0, 8),
        (56, 320.0, 16),
        (56, 10.0, 4),
    ],
)
def test_effective_batch(side: int, slices: float, expected: int, rules: Thresholds) -> None:
    assert training.effective_batch(side, slices, rules.training).value == expected


@pytest.mark.parametrize(("side", "expected"), [(224, 8), (150, 8), (112, 16), (56, 16)])
def test_a_step_has_two_slabs_to_mix(side: int, expected: int, rules: Thresholds) -> None:
    batch = training.effective_batch(side, 1e5, rules.training, rules.slice_mixing)
    assert batch.value == expected
    alone = training.effective_batch(side, 1e5, rules.training)
    assert ("2 slabs of the 4 slices that the slice mixer needs make 8" in batch.why) == (batch.value > alone.value)
    depth = geometry.slab_depth(1.0, 20.0, batch.value, "mixer", rules.slab, rules.slice_mixing.min_mixed_slices).value
    assert depth == 4 and batch.value // depth >= 2
    capped = rules.training.model_copy(update={"max_batch": 4})
    assert training.effective_batch(side, 1e5, capped, rules.slice_mixing).value == 4


@pytest.mark.parametrize("slices", [1.0, 1e3, 4e3, 1e9])
def test_steps_stay_within_their_limits(slices: float, rules: Thresholds) -> None:
    steps = training.rounds(slices, 2, 16, rules.training).value * rules.training.local_steps
    assert rules.training.min_steps <= steps < rules.training.max_steps + rules.training.local_steps


def test_rounds_follow_the_average_site(rules: Thresholds) -> None:
    six_passes = rules.training.model_copy(update={"passes": 6.0, "local_steps": 25})
    one = training.rounds(4000.0, 1, 16, six_passes).value
    two = training.rounds(8000.0, 2, 16, six_passes).value
    assert one == two == 60  # 6 * 4000 / 16 = 1500 steps


def test_learning_rate_scales_with_the_root_of_the_batch(rules: Thresholds) -> None:
    full, quarter = (training.learning_rate(batch, rules.training).value for batch in (16, 4))
    assert full == pytest.approx(rules.training.learning_rate)
    assert quarter == pytest.approx(full / 2)


@pytest.mark.parametrize(("cases", "expected"), [(1, 4), (39, 4), (40, 8), (999, 8), (1000, 16), (10**6, 16)])
def test_lora_rank(cases: int, expected: int, rules: Thresholds) -> None:
    assert training.lora_rank(cases, rules.training).value == expected


def test_mirroring_is_explained(rules: Thresholds) -> None:
    assert training.mirror_axes(rules.training).value == ()
    some = training.mirror_axes(rules.training.model_copy(update={"mirror_axes": (1, 2)}))
    assert some.value == (1, 2)
    assert "mirrors these axes" in some.why
