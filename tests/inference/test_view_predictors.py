"""Three views of one volume, fused: every voxel gets each view's answer once, at its own place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsam_pipeline.inference.agreement import CaseAgreement
from fedsam_pipeline.inference.ensemble import FoldPredictors, gives_probabilities, stream_ensemble
from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.inference.prompts import VolumePrompt
from fedsam_pipeline.inference.view_predictors import view_predictors
from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.preprocessing.views import views
from fedsam_pipeline.specs.plans import Plans
from tests.inference.plans_for_tests import MixingModel, PixelwiseModel, make_plans

SIZES = st.tuples(st.integers(1, 19), st.integers(1, 19), st.integers(1, 19))
ROUNDED = 3 / 4096
SHARED_FOLDER = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
OWN_VOXEL = torch.tensor([[0.0, 2.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.5, 0.0]])


class ConstantModel(PixelwiseModel):
    """Says the same of every voxel."""

    def decode(self, embeddings: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        return torch.tensor([0.5, 2.0, -1.0]).reshape(1, 3, 1, 1).expand(len(embeddings), 3, *embeddings.shape[-2:])


def isotropic(**changes: Any) -> Plans:
    return make_plans(**({"target_spacing": (1.0, 1.0, 1.0)} | changes))


def _image(size: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(1, *size)).astype(np.float32)


def fused(predictors: Any, image: np.ndarray, folder: Path, prompts: tuple[VolumePrompt, ...] = ()) -> np.ndarray:
    """(K, S, H, W)."""
    shares: list[float] = []
    parts = [part.copy() for part in stream_ensemble(predictors, image, folder, shares.append, prompts)]
    assert sum(shares) == pytest.approx(1)
    return np.moveaxis(np.concatenate(parts), 1, 0)


def plain(model: PixelwiseModel, plans: Plans, image: np.ndarray, axes: tuple[int, ...] = ()) -> np.ndarray:
    """The mean of the views' probabilities, each predicted on a copy of the volume with its axes turned."""
    total = np.zeros((3, *image.shape[1:]))
    for view in views(plans, "triplanar"):
        turned = np.ascontiguousarray(image.transpose(0, *(1 + axis for axis in view.order)))
        logits = Predictor(model, view.plans, mirror_axes=view.axes(axes)).predict_case(turned)
        probabilities = torch.from_numpy(logits).softmax(0).numpy()
        total += probabilities.transpose(0, *(1 + view.order.index(axis) for axis in range(3))) / 3
    return total


@given(size=SIZES, axis=st.integers(0, 2), spacing=st.sampled_from([(1.0, 1.0, 1.0), (1.5, 1.0, 1.2), (0.8, 1.1, 0.9)]))
@SHARED_FOLDER
def test_constant_answers_cover_every_voxel_three_times(
    size: tuple[int, int, int], axis: int, spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    plans = make_plans(slice_axis=axis, target_spacing=spacing, window_overlap=0.25)
    found = fused(view_predictors(ConstantModel().eval(), plans, "triplanar"), _image(size), tmp_path)
    assert found.shape == (3, *size)
    expected = torch.tensor([0.5, 2.0, -1.0]).softmax(0).numpy()
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None, None], found.shape), atol=ROUNDED)


@given(size=SIZES, axis=st.integers(0, 2), mixing=st.booleans(), mirror=st.sampled_from([(), (0, 2)]))
@SHARED_FOLDER
def test_answers_that_no_view_changes_are_those_of_main(
    size: tuple[int, int, int], axis: int, mixing: bool, mirror: tuple[int, ...], tmp_path: Path
) -> None:
    """Each voxel by itself: volumes smaller than a window or a slab along any axis, and larger ones."""
    model = (MixingModel if mixing else PixelwiseModel)().eval()
    model.weights = OWN_VOXEL
    plans, image = isotropic(slice_axis=axis), _image(size)
    (main,) = view_predictors(model, plans, "main", mirror_axes=mirror)
    expected = torch.from_numpy(main.predict_case(image)).softmax(0).numpy()
    found = fused(view_predictors(model, plans, "triplanar", mirror_axes=mirror), image, tmp_path)
    np.testing.assert_allclose(found, expected, atol=ROUNDED)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("mirror", [(), (0, 1, 2)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.4, 1.0, 1.1)])
def test_views_are_averaged_each_with_its_own_neighbours_and_window(
    axis: int, mirror: tuple[int, ...], spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    model = PixelwiseModel(weights=torch.tensor([[3.0, 0.0, -1.0], [0.0, 2.0, 0.0], [-2.0, 0.0, 4.0]])).eval()
    plans, image = isotropic(slice_axis=axis, target_spacing=spacing), _image((21, 13, 9))
    found = fused(view_predictors(model, plans, "triplanar", mirror_axes=mirror), image, tmp_path)
    np.testing.assert_allclose(found, plain(model, plans, image, mirror), atol=ROUNDED)
    (main,) = view_predictors(model, plans, "main", mirror_axes=mirror)
    assert np.abs(found - torch.from_numpy(main.predict_case(image)).softmax(0).numpy()).max() > 0.05
    assert not list(tmp_path.iterdir())


class TwoFolds:
    """In place of ``FoldModels``."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weights = [4 * torch.randn(3, 3, generator=generator) for _ in range(2)]
        self.model = PixelwiseModel().eval()

    def __len__(self) -> int:
        return 2

    def use(self, fold: int) -> None:
        self.model.weights = self.weights[fold]


def test_folds_and_views_count_alike(tmp_path: Path) -> None:
    plans, image, folds = isotropic(), _image((9, 18, 11)), TwoFolds()
    ensemble = FoldPredictors(folds, *view_predictors(folds.model, plans, "triplanar"))  # type: ignore[arg-type]
    assert len(ensemble) == 6 and gives_probabilities(ensemble)
    found = fused(ensemble, image, tmp_path)
    expected = np.zeros_like(found)
    for fold in range(2):
        folds.use(fold)
        expected += plain(folds.model, plans, image) / 2
    np.testing.assert_allclose(found, expected, atol=6 / 4096)


def test_slices_of_another_view_never_leave_as_the_stored_ones(tmp_path: Path) -> None:
    other, _, own = view_predictors(PixelwiseModel().eval(), isotropic(), "triplanar")
    for predictors in ([other], [own, other]):
        with pytest.raises(ValueError, match="must be of the stored view"):
            list(stream_ensemble(predictors, _image((3, 4, 5)), tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_prompt_reaches_the_slices_that_cut_it_in_every_view(tmp_path: Path) -> None:
    model = PixelwiseModel().eval()
    predictors = view_predictors(model, isotropic(window_overlap=0.0), "triplanar")
    for predictor in predictors:
        predictor.batch_slices = 1
    box = VolumePrompt("box", 2, (1.0, 2.0, 3.0), (3.0, 6.0, 4.0))  # 3 slices, 5 rows, 2 columns
    fused(predictors, np.zeros((1, 8, 8, 8), np.float32), tmp_path, (box,))
    boxes = [None if prompts is None else tuple(prompts.boxes[0, 0].tolist()) for prompts in model.prompts]
    along_rows, along_columns, along_slices = (list(_prompted(boxes[at : at + 8])) for at in (0, 8, 16))
    assert along_rows == [(row, (3, 1, 4, 3)) for row in range(2, 7)]  # x0, y0, x1, y1: columns, then slices
    assert along_columns == [(column, (2, 1, 6, 3)) for column in (3, 4)]
    assert along_slices == [(number, (3, 2, 4, 6)) for number in range(1, 4)]


def test_prompts_of_one_slice_stay_in_the_stored_view(tmp_path: Path) -> None:
    model = PixelwiseModel().eval()
    predictors = view_predictors(model, isotropic(window_overlap=0.0), "triplanar")
    flat = VolumePrompt("box", 2, (1.0, 2.0, 3.0), (1.0, 6.0, 4.0))  # a line in the views across it
    made = [VolumePrompt("point", 1, (s, 4.0, 4.0), (s, 4.0, 4.0), own_slice_only=True) for s in range(8)]
    fused(predictors, np.zeros((1, 8, 8, 8), np.float32), tmp_path, (flat, *made))
    assert [prompts is not None for prompts in model.prompts] == [False, False, True]  # each view is one batch


def test_folds_are_compared_by_their_stored_view(tmp_path: Path) -> None:
    """And so is mirroring: a single triplanar fold has nobody to agree with but its mirrored images."""
    plans, image, folds = isotropic(), _image((9, 18, 11)), TwoFolds()
    views = view_predictors(folds.model, plans, "triplanar", mirror_axes=(1, 2))
    ensemble = FoldPredictors(folds, *views)  # type: ignore[arg-type]
    watched = CaseAgreement.between(ensemble.num_folds, len(views[-1].mirrorings), 3)
    assert watched.folds is not None
    list(stream_ensemble(ensemble, image, tmp_path, agreement=watched))
    alone = CaseAgreement.between(2, len(views[-1].mirrorings), 3)
    assert alone.folds is not None
    list(stream_ensemble(FoldPredictors(folds, views[-1]), image, tmp_path, agreement=alone))  # type: ignore[arg-type]
    assert watched.folds.dice() == alone.folds.dice()
    assert watched.mirrors is not None and alone.mirrors is not None and watched.mirrors.dice() == alone.mirrors.dice()


def _prompted(boxes: list[tuple[float, ...] | None]) -> Iterator[tuple[int, tuple[float, ...]]]:
    return ((number, box) for number, box in enumerate(boxes) if box is not None)
