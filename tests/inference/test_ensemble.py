"""Ensembles: one fold keeps its logits, several are averaged as probabilities."""

import numpy as np
import pytest
import torch

from fedsam_pipeline.inference.ensemble import predict_ensemble
from fedsam_pipeline.inference.predictor import Predictor
from tests.inference.plans_for_tests import PixelwiseModel, make_plans


def _image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 4, 9, 8)).astype(np.float32)


def test_one_fold_is_its_logits() -> None:
    predictor = Predictor(PixelwiseModel().eval(), make_plans())
    assert np.array_equal(predict_ensemble([predictor], _image()), predictor.predict_case(_image()))


def test_several_folds_are_the_mean_of_their_probabilities() -> None:
    generator = torch.Generator().manual_seed(1)
    predictors = [Predictor(PixelwiseModel(weights=4 * torch.randn(3, 3, generator=generator)).eval(), make_plans()) for _ in range(3)]
    shares: list[float] = []
    found = predict_ensemble(predictors, _image(), shares.append)
    expected = torch.stack([torch.from_numpy(p.predict_case(_image())).softmax(0) for p in predictors]).mean(0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    assert sum(shares) == pytest.approx(1)


def test_nobody_predicts_nothing() -> None:
    with pytest.raises(ValueError, match="needs a predictor"):
        predict_ensemble([], _image())
