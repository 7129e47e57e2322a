"""The cost of a slice with every base model, beside the plan."""

from fedsam_pipeline.model.cost import encoder_gflop
from fedsam_pipeline.model.registry import BASE_MODELS, base_model_spec
from fedsam_pipeline.pipeline.cost_table import cost_table, windows_a_slice
from fedsam_pipeline.planning.rules import make_plan
from tests.planning.fingerprints import stated


def test_every_base_model_is_listed_and_the_plans_own_is_marked() -> None:
    fingerprint = stated(size=(40, 50, 56))
    plans = make_plan(fingerprint, base_model_spec("lite_medsam"))
    header, *rows = cost_table(fingerprint, plans).splitlines()
    assert header.split()[:4] == ["base", "model", "image", "windows"]
    assert [row.split()[0] for row in rows] == [name for name, spec in BASE_MODELS.items() if spec.weights is not None]
    marked = [row for row in rows if "this plan" in row]
    cost = encoder_gflop("lite_medsam", 56)
    assert [row.split()[:4] for row in marked] == [["lite_medsam", "56", "1", f"{cost:.4g}"]]


def test_a_model_without_weights_is_listed_only_where_it_is_planned_for() -> None:
    fingerprint = stated(size=(20, 28, 28))
    plans = make_plan(fingerprint, base_model_spec("tiny_random"))
    assert "tiny_random" in cost_table(fingerprint, plans)
    assert "tiny_random" not in cost_table(fingerprint, make_plan(fingerprint, base_model_spec("lite_medsam")))


def test_large_slices_cost_their_windows() -> None:
    fingerprint = stated(size=(100, 400, 400), spacing=({5000: 10}, {1000: 10}, {1000: 10}))
    plans = make_plan(fingerprint, base_model_spec("lite_medsam"))
    assert plans.image_size == 224
    assert windows_a_slice(fingerprint, plans) == 9  # three an axis: 400 voxels in windows of 224, half overlapping
