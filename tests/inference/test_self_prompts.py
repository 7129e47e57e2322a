"""Self-prompting: the second pass is given what the first found, and a person's prompts stand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsam_pipeline.inference.ensemble import stream_ensemble
from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.inference.prompts import VolumePrompt
from fedsam_pipeline.inference.self_prompts import found_prompts, stream_self_prompted
from fedsam_pipeline.specs.plans import Plans
from tests.inference.plans_for_tests import PixelwiseModel, make_plans


def _plans(mode: str) -> Plans:
    return make_plans(prompts={"mode": mode, "jitter_mm": 0.0, "dropout": 0.0})


def _scores(labels: np.ndarray) -> np.ndarray:
    """(S, K, H, W)."""
    return np.stack([labels == label for label in range(3)], axis=1).astype(np.float32)


def _labels() -> np.ndarray:
    labels = np.zeros((4, 8, 8), np.int64)
    labels[1, 1:4, 2:7] = 1
    labels[1, 6:8, 0:2] = 2
    labels[2, 0:1, 0:1] = 2
    labels[2, 5:7, 4:8] = 2
    return labels


def test_each_object_on_each_slice_becomes_a_box() -> None:
    scores = _scores(_labels())
    found = found_prompts([scores[:2], scores[2:]], _plans("box"))
    assert found == [
        VolumePrompt("box", 1, (1, 1, 2), (1, 3, 6), own_slice_only=True),
        VolumePrompt("box", 2, (1, 6, 0), (1, 7, 1), own_slice_only=True),
        VolumePrompt("box", 2, (2, 5, 4), (2, 6, 7), own_slice_only=True),
        VolumePrompt("box", 2, (2, 0, 0), (2, 0, 0), own_slice_only=True),
    ]


def test_a_model_of_points_gets_a_point_in_each_object() -> None:
    labels = _labels()
    found = found_prompts([_scores(labels)], _plans("point"))
    assert [prompt.kind for prompt in found] == 4 * ["point"]
    for prompt in found:
        s, y, x = (int(place) for place in prompt.first)
        assert prompt.first == prompt.last and labels[s, y, x] == prompt.label
    with pytest.raises(ValueError, match="without prompts"):
        found_prompts([_scores(labels)], _plans("auto"))


class _Bright(PixelwiseModel):
    """Class 1 where the slice is above 0, class 2 where it is below."""

    def __init__(self) -> None:
        super().__init__(weights=torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]))
        self.eval()


@pytest.mark.parametrize("folds", [1, 2])
def test_the_second_pass_is_prompted_with_what_the_first_found(tmp_path: Path, folds: int) -> None:
    plans = _plans("box")
    models = [_Bright() for _ in range(folds)]
    predictors = [Predictor(model, plans, batch_slices=4) for model in models]
    labels = _labels()
    image = np.array([0.0, 1.0, -1.0], np.float32)[labels][None]
    marked = [VolumePrompt("box", 1, (0, 0, 0), (2, 7, 7))]
    shares: list[float] = []
    parts = stream_self_prompted(predictors, image, tmp_path, plans, shares.append, marked)
    scores = np.concatenate([part.copy() for part in parts])
    assert np.array_equal(scores.argmax(axis=1), labels)
    assert sum(shares) == pytest.approx(1)
    for model in models:
        first, second = model.prompts
        assert first is not None and second is not None
        assert first.classes.tolist() == [[1], [1], [1], [0]]
        assert second.classes.tolist() == [[1, 0, 0], [1, 2, 0], [1, 2, 2], [0, 0, 0]]  # where a person marked class 1, nothing is added
        assert second.boxes[2, 1].tolist() == [4, 5, 7, 6]
    assert not list(tmp_path.iterdir())


def test_where_nothing_is_found_the_second_pass_is_the_first(tmp_path: Path) -> None:
    plans = _plans("box")
    predictors = [Predictor(_Bright(), plans)]
    image = np.zeros((1, 3, 8, 8), np.float32)
    once = np.concatenate([part.copy() for part in stream_ensemble(predictors, image, tmp_path)])
    twice = np.concatenate([part.copy() for part in stream_self_prompted(predictors, image, tmp_path, plans)])
    np.testing.assert_array_equal(once, twice)
