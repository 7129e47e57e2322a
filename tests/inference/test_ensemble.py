"""Ensembles: one fold keeps its logits, several are averaged as probabilities."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsam_pipeline.inference.agreement import Agreement, CaseAgreement
from fedsam_pipeline.inference.ensemble import gives_probabilities, stream_ensemble
from fedsam_pipeline.inference.predictor import Predictor
from tests.inference.plans_for_tests import PixelwiseModel, make_plans


def _image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 11, 9, 8)).astype(np.float32)


def _predictors(number: int) -> list[Predictor]:
    generator = torch.Generator().manual_seed(1)
    models = [PixelwiseModel(weights=4 * torch.randn(3, 3, generator=generator)).eval() for _ in range(number)]
    return [Predictor(model, make_plans(), batch_slices=3) for model in models]


def _gathered(predictors: list[Predictor], folder: Path, on_progress: Callable[[float], object] | None = None) -> np.ndarray:
    parts = [part.copy() for part in stream_ensemble(predictors, _image(), folder, on_progress)]
    return np.moveaxis(np.concatenate(parts), 1, 0)


def test_one_fold_is_its_logits(tmp_path: Path) -> None:
    predictors = _predictors(1)
    assert not gives_probabilities(predictors)
    assert np.array_equal(_gathered(predictors, tmp_path), predictors[0].predict_case(_image()))


@pytest.mark.parametrize("number", [2, 5])
def test_several_folds_are_the_mean_of_their_probabilities(number: int, tmp_path: Path) -> None:
    predictors = _predictors(number)
    assert gives_probabilities(predictors)
    shares: list[float] = []
    found = _gathered(predictors, tmp_path, shares.append)
    expected = torch.stack([torch.from_numpy(p.predict_case(_image())).softmax(0) for p in predictors]).mean(0).numpy()
    np.testing.assert_allclose(found, expected, atol=number / 4096)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=number / 2048)
    assert sum(shares) == pytest.approx(1)
    assert not list(tmp_path.iterdir())


def test_nobody_predicts_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a predictor"):
        _gathered([], tmp_path)


@pytest.mark.parametrize("number", [2, 3])
def test_the_agreement_of_folds_is_that_of_their_own_answers(number: int, tmp_path: Path) -> None:
    predictors = _predictors(number)
    plain = _gathered(predictors, tmp_path)
    watched = CaseAgreement.between(number, 1, 3)
    parts = [part.copy() for part in stream_ensemble(predictors, _image(), tmp_path, agreement=watched)]
    assert np.array_equal(np.moveaxis(np.concatenate(parts), 1, 0), plain)
    expected = Agreement(number, 3)
    expected.add([torch.from_numpy(p.predict_case(_image())).argmax(0).short() for p in predictors])
    assert watched.folds is not None and watched.folds.dice() == expected.dice()
    assert all(value is not None and 0 < value < 1 for value in expected.dice())
    assert not list(tmp_path.iterdir())
