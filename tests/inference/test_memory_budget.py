"""Batch sizes: within the limit wherever something fits, the smallest where nothing does."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsam_pipeline.inference.memory_budget import BATCH_BYTES, SliceCost, batch_sizes, set_batch_sizes, slice_cost
from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.inference.probabilities import CUBE
from fedsam_pipeline.inference.view_predictors import view_predictors
from fedsam_pipeline.model.build import build_planned
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.recipe import load_recipe
from tests.conftest import make_tiny_plans
from tests.inference.plans_for_tests import MixingModel, PixelwiseModel, make_plans

COST = SliceCost(activations=1 << 20, embedding=1 << 16)


def _properties(*size: int) -> CaseProperties:
    values: dict[str, Any] = dict.fromkeys(("original_size", "canonical_size", "crop_size", "resampled_size"), size)
    values |= {"original_spacing": (1.0, 1.0, 1.0), "original_origin": (0.0, 0.0, 0.0), "crop_start": (0, 0, 0)}
    return CaseProperties.model_validate(values | {"case": "case", "original_direction": (1.0, 0, 0, 0, 1, 0, 0, 0, 1), "slice_axis": 0})


@given(limit=st.integers(1, 1 << 32), used=st.integers(0, 1 << 31), mixing=st.booleans())
def test_what_is_chosen_fits_if_the_smallest_fits(limit: int, used: int, mixing: bool) -> None:
    predictor = Predictor((MixingModel if mixing else PixelwiseModel)().eval(), make_plans())
    properties = _properties(40, 64, 48)
    smallest = batch_sizes(predictor, COST, properties, 1, 0, 16)
    assert (smallest.batch_slices, smallest.kept_embeddings, smallest.native_slices) == (1, 0, 1)
    chosen = batch_sizes(predictor, COST, properties, limit, used, 16)
    assert 1 <= chosen.batch_slices <= 16 and 1 <= chosen.native_slices <= CUBE
    assert chosen.kept_embeddings is not None and chosen.kept_embeddings >= 0
    assert used + chosen.needed <= max(limit, used + smallest.needed)


def test_without_a_limit_large_slices_still_come_in_small_batches() -> None:
    predictor = Predictor(PixelwiseModel().eval(), make_plans())
    small = batch_sizes(predictor, COST, _properties(40, 64, 48), None, 0, 16)
    assert (small.batch_slices, small.kept_embeddings, small.native_slices) == (16, None, CUBE)
    assert batch_sizes(predictor, COST, _properties(40, 1024, 1024), None, 0, 16).batch_slices < 16
    assert batch_sizes(predictor, SliceCost(2 * BATCH_BYTES, 1), _properties(4, 8, 8), None, 0, 16).batch_slices == 1


def test_each_view_takes_batches_for_its_own_planes() -> None:
    """Slices of 4 x 900 voxels come in larger batches than one of 900 x 900, and the whole fits where the largest does."""
    predictors = view_predictors(PixelwiseModel().eval(), make_plans(), "triplanar")
    limit = 1 << 29
    needed = set_batch_sizes(predictors, COST, _properties(4, 900, 900), limit, 0, 16)
    along_rows, along_columns, own = (predictor.batch_slices for predictor in predictors)
    assert along_rows == along_columns == 16
    assert own < 16
    assert needed.needed <= limit
    assert needed == max((batch_sizes(each, COST, _properties(4, 900, 900), limit, 0, 16) for each in predictors), key=lambda s: s.needed)


@pytest.mark.parametrize("mixing", ["neighbours", "mixer"])
def test_the_cost_of_a_slice_is_seen_in_the_model(mixing: str) -> None:
    same: Any = ({"channel": 0, "offset": 0},)
    plans = make_tiny_plans(slice_mixing=mixing, encoder_inputs=(same,) * 3)
    model = build_planned(plans, load_recipe("flap_sam"), rank=2, weights=None).model.eval()
    predictor = Predictor(model, plans)
    cost = slice_cost(predictor)
    with torch.inference_mode():
        embeddings = model.encode(torch.zeros(plans.slab_depth, 3, 28, 28))
    assert cost.embedding == embeddings.nbytes // plans.slab_depth
    largest = max(math.prod(shape) for shape in _outputs(model))
    assert cost.activations >= 4 * largest


def _outputs(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of what the layers of the encoder make of one slice."""
    shapes: list[tuple[int, ...]] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
        for layer in model.image_encoder.modules()  # type: ignore[union-attr]
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.inference_mode():
        model.image_encoder(torch.zeros(1, 3, 28, 28))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return shapes
