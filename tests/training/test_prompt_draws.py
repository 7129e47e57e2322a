"""Prompts drawn from labels: inside the image, near their objects, of the right classes, as often as planned."""

from itertools import chain
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.model.objects import MAX_OBJECTS
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.training.prompt_draws import draw_prompts, jitter_pixels
from tests.inference.plans_for_tests import make_plans


def plans(mode: str, **changes: Any) -> Plans:
    return make_plans(prompts={"mode": mode, "jitter_mm": 0.0, "dropout": 0.0} | changes, image_size=28, window=(28, 28))


def labels() -> np.ndarray:
    """Three slices: nothing; class 1 once and class 2 twice; class 2 at a corner."""
    volume = np.zeros((3, 28, 28), np.int64)
    volume[1, 4:10, 6:15] = 1
    volume[1, 20:23, 3:8] = 2
    volume[1, 15:17, 20:27] = 2
    volume[2, 0:2, 0:3] = 2
    return volume


def test_boxes_without_jitter_are_tight() -> None:
    nothing, two_classes, corner = draw_prompts(labels(), plans("box"), np.random.default_rng(0))
    assert nothing == []
    assert [(prompt.label, prompt.box) for prompt in two_classes] == [
        (1, (6, 4, 14, 9)),
        (2, (3, 20, 7, 22)),
        (2, (20, 15, 26, 16)),
    ]
    assert [prompt.box for prompt in corner] == [(0, 0, 2, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_jitter_is_bounded_and_stays_in_the_image(seed: int) -> None:
    jittered = plans("box", jitter_mm=2.5)
    exact = draw_prompts(labels(), plans("box"), np.random.default_rng(seed))
    moved = draw_prompts(labels(), jittered, np.random.default_rng(seed))
    for before, after in zip(chain(*exact), chain(*moved), strict=True):
        assert np.abs(np.subtract(before.box, after.box)).max() <= 2.5
        x0, y0, x1, y1 = after.box
        assert 0 <= x0 <= x1 <= 27
        assert 0 <= y0 <= y1 <= 27
    assert exact != moved


@pytest.mark.parametrize("seed", range(20))
def test_points_lie_in_their_objects(seed: int) -> None:
    volume = labels()
    for plane, prompts in zip(volume, draw_prompts(volume, plans("point", jitter_mm=6.0), np.random.default_rng(seed)), strict=True):
        for prompt in prompts:
            x, y, *_ = prompt.box
            assert prompt.box == (x, y, x, y)
            assert (plane[int(y), int(x)] == prompt.label) == (prompt.kind == "point")


def test_some_classes_get_a_negative_point_near_their_objects() -> None:
    volume, seeds = labels()[1:2], 200
    volume[0, :3] = -1
    negative = []
    for seed in range(seeds):
        (drawn,) = draw_prompts(volume, plans("point"), np.random.default_rng(seed))
        assert [prompt.kind for prompt in drawn].count("point") == 3
        negative += [prompt for prompt in drawn if prompt.kind == "negative_point"]
    assert 0.18 < len(negative) / (2 * seeds) < 0.32
    for prompt in negative:
        x, y = (int(place) for place in prompt.box[:2])
        assert volume[0, y, x] not in (prompt.label, -1)
        if prompt.label == 1:
            assert 3 <= y < 16 and x < 24
    full = np.ones((1, 28, 28), np.int64)
    assert all(len(draw_prompts(full, plans("point"), np.random.default_rng(seed))[0]) == 1 for seed in range(20))


def test_jitter_is_in_millimetres() -> None:
    coarse = make_plans(
        prompts={"mode": "box", "jitter_mm": 3.0, "dropout": 0.0}, target_spacing=(5.0, 1.5, 0.5), image_size=28, window=(14, 28)
    )
    assert jitter_pixels(coarse) == pytest.approx((4.0, 6.0))


def test_a_class_loses_its_prompts_in_the_whole_slab_as_often_as_planned() -> None:
    volume = np.repeat(labels()[1:2], 2, axis=0)
    kept = {1: 0, 2: 0}
    for seed in range(400):
        first, second = draw_prompts(volume, plans("box", dropout=0.7), np.random.default_rng(seed))
        assert [prompt.label for prompt in first] == [prompt.label for prompt in second]
        for label in kept:
            kept[label] += label in {prompt.label for prompt in first}
    assert all(0.2 < count / 400 < 0.4 for count in kept.values())
    assert draw_prompts(volume, plans("box", dropout=1.0), np.random.default_rng(0)) == [[], []]


def test_the_largest_objects_are_marked_and_ignored_voxels_never() -> None:
    plane = np.full((1, 28, 28), -1, np.int64)
    for number in range(MAX_OBJECTS + 2):
        plane[0, 4 * number : 4 * number + 2, : number + 1] = 1
    drawn = draw_prompts(plane, plans("box"), np.random.default_rng(0))[0]
    assert [prompt.box[2] for prompt in drawn] == [5, 4, 3, 2]
