"""The predictor, against the plain answer of models whose logits are known voxel by voxel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.inference.agreement import Agreement
from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.inference.prompts import VolumePrompt
from fedsam_pipeline.model import compilation
from fedsam_pipeline.model.build import build_planned
from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.preprocessing.slabs import encoder_inputs, read_slab
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import load_recipe
from tests.conftest import make_tiny_plans
from tests.inference.plans_for_tests import MixingModel, PixelwiseModel, make_plans


def _image(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def _expected(model: PixelwiseModel, image: np.ndarray, plans: Plans) -> np.ndarray:
    inputs = encoder_inputs(read_slab(image, 0, image.shape[1], plans.max_offset), plans)
    return model.decode(inputs).movedim(1, 0).numpy()


@given(
    size=st.tuples(st.integers(1, 11), st.integers(1, 19), st.integers(1, 19)),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    batch=st.integers(1, 16),
    mixing=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_windows_do_not_change_pixelwise_logits(size: tuple[int, int, int], overlap: float, batch: int, mixing: bool) -> None:
    plans = make_plans(window_overlap=overlap)
    model = (MixingModel if mixing else PixelwiseModel)().eval()
    image = _image(1, *size)
    found = Predictor(model, plans, batch_slices=batch).predict_case(image)
    assert found.dtype == np.float32
    assert found.shape == (3, *size)
    np.testing.assert_allclose(found, _expected(model, image, plans), atol=1e-5)


@pytest.mark.parametrize("model_class", [PixelwiseModel, MixingModel])
def test_each_slice_is_encoded_once_for_each_window(model_class: type[PixelwiseModel]) -> None:
    model = model_class().eval()
    Predictor(model, make_plans(), batch_slices=4).predict_case(_image(1, 11, 12, 8))
    assert model.encoded_slices == 11 * 2  # 12 rows need two windows of 8
    assert max(model.batches) <= 4


@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 19), st.integers(1, 19)),
    step_size=st.sampled_from([0.25, 0.5, 1.0]),
    axes=st.sampled_from([(), (0, 2)]),
    mixing=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_slices_leave_in_order_as_soon_as_no_slab_needs_them(
    size: tuple[int, int, int], step_size: float, axes: tuple[int, ...], mixing: bool
) -> None:
    plans, image = make_plans(), _image(1, *size)
    predictor = Predictor(
        (MixingModel if mixing else PixelwiseModel)().eval(), plans, batch_slices=3, mirror_axes=axes, step_size=step_size
    )
    parts = [part.copy() for part in predictor.stream_case(image)]
    assert max(len(part) for part in parts) <= max(plans.slab_depth, predictor.batch_slices)
    assert np.array_equal(np.moveaxis(np.concatenate(parts), 1, 0), predictor.predict_case(image))


def test_the_step_size_decides_how_many_windows_and_slabs_there_are() -> None:
    image = _image(1, 12, 20, 8)
    for step_size, windows, slabs in ((1.0, 3, 3), (0.5, 4, 5), (0.25, 7, 9)):
        model = MixingModel().eval()
        found = Predictor(model, make_plans(), step_size=step_size).predict_case(image)
        assert model.slabs == [4] * slabs * windows
        assert model.encoded_slices == 12 * windows
        np.testing.assert_allclose(found, _expected(model, image, make_plans()), atol=1e-5)


@pytest.mark.parametrize(("kept", "encoded"), [(None, 10 * 4), (4, 10 * 4 + 3 * 2 * 2), (0, 16 * 4)])
def test_fewer_kept_embeddings_cost_time_and_change_nothing(kept: int | None, encoded: int) -> None:
    image = _image(1, 10, 12, 8)  # slabs at 0, 2, 4, 6; two windows, each plain and mirrored
    model = MixingModel().eval()
    found = Predictor(model, make_plans(), mirror_axes=(2,), kept_embeddings=kept).predict_case(image)
    assert model.encoded_slices == encoded
    assert np.array_equal(found, Predictor(model, make_plans(), mirror_axes=(2,)).predict_case(image))


def test_a_model_that_mixes_slices_sees_whole_overlapping_slabs() -> None:
    model = MixingModel().eval()
    Predictor(model, make_plans()).predict_case(_image(1, 10, 8, 8))
    assert model.slabs == [4, 4, 4, 4]  # starts 0, 2, 4, 6
    model.slabs.clear()
    Predictor(model, make_plans()).predict_case(_image(1, 2, 8, 8))
    assert model.slabs == [4]


@pytest.mark.parametrize("model_class", [PixelwiseModel, MixingModel])
@pytest.mark.parametrize("axes", [(1,), (2,), (0, 1, 2)])
def test_mirroring_is_undone(model_class: type[PixelwiseModel], axes: tuple[int, ...]) -> None:
    weights = torch.tensor([[0.5, 1.0, 0.5], [1.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # the two neighbours count alike
    model = model_class().eval()
    model.weights = weights
    plans, image = make_plans(), _image(1, 7, 9, 12)
    found = Predictor(model, plans, mirror_axes=axes).predict_case(image)
    np.testing.assert_allclose(found, _expected(model, image, plans), atol=1e-5)
    assert model.encoded_slices == 7 * 2 * 2 * 2 ** len(axes)


def test_mirroring_along_slices_swaps_the_neighbours() -> None:
    model = PixelwiseModel(weights=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).eval()
    plans, image = make_plans(), _image(1, 5, 8, 8)
    found = Predictor(model, plans, mirror_axes=(0,)).predict_case(image)
    plain = _expected(model, image, plans)
    both = (plain[0] + plain[2]) / 2
    np.testing.assert_allclose(found, np.stack([both, plain[1], both]), atol=1e-5)


def test_mirroring_along_slices_is_left_out_where_no_slice_sees_another() -> None:
    plans = make_plans(slice_mixing="none", encoder_inputs=[[{"channel": 0, "offset": 0}]] * 3)
    assert Predictor(PixelwiseModel().eval(), plans, mirror_axes=(0, 1)).mirrorings == [(), (1,)]


def test_windows_are_magnified_to_the_image_size_and_back() -> None:
    model = PixelwiseModel(weights=torch.eye(3)).eval()
    plans = make_plans(image_size=32, window=(8, 8))
    image = np.broadcast_to(np.linspace(0, 1, 12, dtype=np.float32), (1, 3, 10, 12))
    found = Predictor(model, plans).predict_case(np.ascontiguousarray(image))
    np.testing.assert_allclose(found[1], image[0], atol=0.03)


def test_progress_adds_up_to_one() -> None:
    shares: list[float] = []
    Predictor(PixelwiseModel().eval(), make_plans(), batch_slices=2, mirror_axes=(2,)).predict_case(_image(1, 5, 9, 9), shares.append)
    assert sum(shares) == pytest.approx(1)


def test_bfloat16_autocast_still_returns_float32() -> None:
    found = Predictor(PixelwiseModel().eval(), make_plans(), autocast_dtype=torch.bfloat16).predict_case(_image(1, 3, 8, 8))
    assert found.dtype == np.float32


def test_misuse_is_refused() -> None:
    plans = make_plans()
    with pytest.raises(ValueError, match="training mode"):
        Predictor(PixelwiseModel(), plans).predict_case(_image(1, 3, 8, 8))
    with pytest.raises(ValueError, match="1 channels"):
        Predictor(PixelwiseModel().eval(), plans).predict_case(_image(2, 3, 8, 8))
    with pytest.raises(ValueError, match="returns 2 classes, the plan has 3"):
        Predictor(PixelwiseModel(2).eval(), plans).predict_case(_image(1, 3, 8, 8))
    with pytest.raises(ValueError, match="step_size"):
        Predictor(PixelwiseModel().eval(), plans, step_size=0.0)
    with pytest.raises(ValueError, match="mirror_axes among"):
        Predictor(PixelwiseModel().eval(), plans, mirror_axes=(3,))


class LeaningModel(PixelwiseModel):
    """Class 1 left of the window's middle, else background: mirrored images contradict each other."""

    def decode(self, embeddings: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        """Logits (N, 3, h, w)."""
        left = torch.linspace(1, -1, embeddings.shape[-1]).expand(embeddings[:, 0].shape)
        return torch.stack([-left, left, torch.full_like(left, -9.0)], dim=1)


def test_mirrored_images_that_contradict_each_other_are_seen() -> None:
    for model, axes, expected in ((LeaningModel(), (2,), 0.0), (LeaningModel(), (1,), 1.0), (LeaningModel(), (1, 2), 1 / 3)):
        mirrors = Agreement(2 ** len(axes), 3)
        predictor = Predictor(model.eval(), make_plans(), mirror_axes=axes, batch_slices=2)
        plain = predictor.predict_case(_image(1, 5, 13, 8))
        parts = [part.copy() for part in predictor.stream_case(_image(1, 5, 13, 8), mirrors=mirrors)]
        assert np.array_equal(np.moveaxis(np.concatenate(parts), 1, 0), plain)
        first, second = mirrors.dice()
        assert first == pytest.approx(expected) and second is None


@pytest.mark.parametrize("model_class", [PixelwiseModel, MixingModel])
def test_mirrored_images_of_a_pixelwise_model_agree(model_class: type[PixelwiseModel]) -> None:
    mirrors = Agreement(4, 3)
    predictor = Predictor(
        model_class().eval(), make_plans(slice_mixing="none", encoder_inputs=[[{"channel": 0, "offset": 0}]] * 3), mirror_axes=(1, 2)
    )
    list(predictor.stream_case(_image(1, 6, 19, 11), mirrors=mirrors))
    assert all(value is None or value == pytest.approx(1) for value in mirrors.dice())


@given(
    runs=st.lists(st.integers(0, 1), min_size=1, max_size=14),
    air=st.integers(0, 15),
    batch=st.integers(2, 16),
    axes=st.sampled_from([(), (2,), (0, 1)]),
    neighbours=st.booleans(),
    mixing=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equal_slices_have_the_answers_they_have_alone(
    runs: list[int], air: int, batch: int, axes: tuple[int, ...], neighbours: bool, mixing: bool
) -> None:
    image = _image(1, 15, 9, 15)[:, np.cumsum(runs)]  # a slice is a new one where runs has a 1
    image[..., :air] = -1.5
    plans = make_plans() if neighbours else make_plans(encoder_inputs=[[{"channel": 0, "offset": 0}]] * 3)
    shared, plain = ((MixingModel if mixing else PixelwiseModel)().eval() for _ in range(2))
    found = Predictor(shared, plans, batch_slices=batch, mirror_axes=axes).predict_case(image)
    expected = Predictor(plain, plans, batch_slices=1, mirror_axes=axes).predict_case(image)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert shared.encoded_slices <= plain.encoded_slices


def test_slices_without_tissue_are_one_slice_to_the_model() -> None:
    model, image = PixelwiseModel().eval(), _image(1, 12, 8, 8)
    image[:, :5] = -1.5
    image[:, 9:] = 0.25
    found = Predictor(model, make_plans(), batch_slices=12).predict_case(image)
    np.testing.assert_allclose(found, _expected(model, image, make_plans()), atol=1e-6)
    assert model.batches == [8]  # 0-3 see air alone, 4 sees tissue below; 5-8 are tissue; 9 sees it above, 10-11 do not


def test_slices_that_are_prompted_are_decoded_by_themselves() -> None:
    model, image = PixelwiseModel().eval(), np.zeros((1, 6, 8, 8), np.float32)
    asked = [VolumePrompt("box", 1, (2, 1, 1), (2, 6, 6), own_slice_only=True)]
    Predictor(model, make_plans(prompts={"mode": "box", "jitter_mm": 0.0, "dropout": 0.0})).predict_case(image, prompts=asked)
    assert model.batches == [1]
    (prompts,) = model.prompts
    assert prompts is not None and prompts.classes.any(dim=1).tolist() == [False, True, False]  # 0-1, 2, 3-5


def test_an_encoder_is_compiled_for_full_batches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    plans = make_tiny_plans()
    model = build_planned(plans, load_recipe("flap_sam"), rank=2, weights=None).model.eval()
    image = _image(1, 11, *plans.window)
    image[:, 5] = image[:, 4]  # one of two equal slices is encoded
    expected = Predictor(model, plans, batch_slices=4).predict_case(image)
    compilation.compile_encoder(model, torch.device("cpu"))
    encode, seen = model.encode, set()

    def watched(images: torch.Tensor) -> torch.Tensor:
        seen.add((len(images), compilation.is_compiled(model)))
        return encode(images)

    monkeypatch.setattr(model, "encode", watched)
    np.testing.assert_allclose(Predictor(model, plans, batch_slices=4).predict_case(image), expected, atol=1e-5)
    assert {compiled for _, compiled in seen} == {True, False} and (3, False) in seen and (4, True) in seen
    seen.clear()
    Predictor(model, plans, batch_slices=16).predict_case(image)
    assert {compiled for _, compiled in seen} == {True}  # a volume that is smaller than a batch


def test_the_tiny_model_answers_empty_slices_as_it_does_alone() -> None:
    plans = make_tiny_plans()
    model = build_planned(plans, load_recipe("flap_sam"), rank=2, weights=None).model.eval()
    image = _image(1, 13, *plans.window)
    image[:, :6] = image.min()
    found = Predictor(model, plans).predict_case(image)
    np.testing.assert_allclose(found, Predictor(model, plans, batch_slices=1).predict_case(image), atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("model_class", [PixelwiseModel, MixingModel])
def test_a_gpu_answers_as_the_cpu_does(model_class: type[PixelwiseModel]) -> None:
    image = _image(1, 21, 19, 12)
    image[:, 4:7] = 0.5
    on_gpu = model_class().eval()
    on_gpu.weights = on_gpu.weights.cuda()
    found = Predictor(on_gpu, make_plans(), "cuda", batch_slices=4, mirror_axes=(1, 2)).predict_case(image)
    expected = Predictor(model_class().eval(), make_plans(), batch_slices=4, mirror_axes=(1, 2)).predict_case(image)
    np.testing.assert_allclose(found, expected, atol=1e-3)
