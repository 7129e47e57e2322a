"""Prompts on a volume, as windows of its slices see them."""

import numpy as np
import pytest

from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.inference.prompts import VolumePrompt, image_prompts
from tests.inference.plans_for_tests import PixelwiseModel, make_plans

BOX = VolumePrompt("box", 2, (1.0, 2.0, 3.0), (3.0, 5.0, 9.0))


def test_a_box_reaches_its_slices_only() -> None:
    assert [len(image_prompts([BOX], s, (0, 0), (16, 16), 16)) for s in range(5)] == [0, 1, 1, 1, 0]
    found = image_prompts([BOX], 2, (0, 0), (16, 16), 16)[0]
    assert (found.kind, found.label, found.box) == ("box", 2, (3.0, 2.0, 9.0, 5.0))


def test_voxel_faces_keep_their_places_when_a_window_is_magnified() -> None:
    found = image_prompts([BOX], 2, (2, 1), (8, 16), 32)[0]
    x0, y0, x1, y1 = found.box
    assert (y0 + 0.5, y1 + 0.5) == pytest.approx(((2 - 2 + 0.5) * 4, (5 - 2 + 0.5) * 4))
    assert (x0 + 0.5, x1 + 0.5) == pytest.approx(((3 - 1 + 0.5) * 2, (9 - 1 + 0.5) * 2))


def test_boxes_are_cut_at_the_window_and_left_out_beyond_it() -> None:
    assert image_prompts([BOX], 2, (4, 5), (8, 8), 8)[0].box == (0.0, 0.0, 4.0, 1.0)
    assert image_prompts([BOX], 2, (6, 0), (8, 8), 8) == []
    point = VolumePrompt("point", 1, (2.0, 7.0, 7.0), (2.0, 7.0, 7.0))
    assert image_prompts([point], 2, (0, 0), (7, 8), 8) == []
    assert image_prompts([point], 2, (0, 0), (8, 8), 8)[0].box == (7.0, 7.0, 7.0, 7.0)


def test_mirroring_twice_is_no_mirroring() -> None:
    once = image_prompts([BOX], 2, (0, 0), (16, 16), 16, mirrored=(1,))[0]
    assert once.box == (3.0, 10.0, 9.0, 13.0)
    again = VolumePrompt("box", 2, (2.0, once.box[1], once.box[0]), (2.0, once.box[3], once.box[2]))
    assert image_prompts([again], 2, (0, 0), (16, 16), 16, mirrored=(1,))[0].box == (3.0, 2.0, 9.0, 5.0)
    assert image_prompts([BOX], 2, (0, 0), (16, 16), 16, mirrored=(1, 2))[0].box == (6.0, 10.0, 12.0, 13.0)
    assert image_prompts([BOX], 2, (0, 0), (16, 16), 16, mirrored=(0,))[0].box == (3.0, 2.0, 9.0, 5.0)


def test_the_predictor_hands_each_slice_its_prompts() -> None:
    model = PixelwiseModel()
    model.eval()
    image = np.zeros((1, 5, 8, 10), np.float32)
    Predictor(model, make_plans(), batch_slices=2).predict_case(image, prompts=[BOX])
    given = [None if prompts is None else prompts.classes.tolist() for prompts in model.prompts]
    assert given == [*2 * [[[0], [2]]], *2 * [[[2], [2]]], *2 * [None]]  # slices 0-1, 2-3 and 4, each in two windows
    left, right = (model.prompts[index] for index in (2, 3))
    assert left is not None
    assert right is not None
    assert left.boxes[0, 0].tolist() == [3, 2, 7, 5]
    assert right.boxes[0, 0].tolist() == [1, 2, 7, 5]
    Predictor(model, make_plans()).predict_case(image)
    assert model.prompts[-1] is None
