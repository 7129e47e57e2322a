"""Prediction with two folds, mirroring and saved probabilities, from adapter files to masks, beside the plain way to the same answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsam_pipeline.dataset.volume import Geometry, from_canonical, read_image, read_labels, to_canonical, write_image
from fedsam_pipeline.entrypoints.ensemble import main as ensemble
from fedsam_pipeline.entrypoints.predict import main as predict
from fedsam_pipeline.inference.probabilities import open_probabilities
from fedsam_pipeline.model.build import build_planned
from fedsam_pipeline.model.bundle import load_bundle
from fedsam_pipeline.model.trained_files import BundleInfo, write_adapter, write_documents
from fedsam_pipeline.preprocessing.preprocess import preprocess_image
from fedsam_pipeline.preprocessing.resample import resample
from fedsam_pipeline.preprocessing.slabs import centred_origin, crop_or_pad, encoder_inputs, read_slab
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import load_recipe
from tests.conftest import make_tiny_plans

TURN = np.deg2rad(12.0)
OBLIQUE = (np.cos(TURN), -np.sin(TURN), 0.0, 0.0, 0.0, 1.0, -np.sin(TURN), -np.cos(TURN), 0.0)  # coronal, flipped and turned
GEOMETRY = Geometry((9, 26, 22), (2.0, 1.1, 0.9), (-31.5, 12.25, 8.0), tuple(float(number) for number in OBLIQUE))


def train(run: Path, plans: Plans, folds: Sequence[int]) -> Path:
    """Two folds as training would leave them, with every trained tensor moved."""
    recipe = load_recipe("flap_sam")
    for fold in folds:
        adapted = build_planned(plans, recipe, rank=2, weights=None)
        generator = torch.Generator().manual_seed(fold)
        for tensor in adapted.trained_tensors().values():
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
        info = {"base_model": "tiny_random", "base_weights_sha256": "random", "lora_rank": 2, "rounds_done": 1, "adapter_sha256": "0" * 64}
        write_documents(run / f"fold_{fold}", plans, recipe, adapted.manifest)
        write_adapter(run / f"fold_{fold}", adapted.trained_tensors(), BundleInfo.from_dict(info))
    return run


def images(folder: Path, number: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"case{index}_0000.nii.gz" for index in range(number)]
    for seed, path in enumerate(paths):
        values = np.random.default_rng(seed).normal(100, 20, GEOMETRY.size).astype(np.float32)
        values[:, :4] = 0  # preprocessing crops what is empty
        write_image(path, values, GEOMETRY)
    return paths


@torch.no_grad()
def plain_answer(path: Path, fold_folders: Sequence[Path], mirrored: Sequence[tuple[int, ...]]) -> np.ndarray:
    """(K, Z, Y, X) mean probabilities, in the image's axes, with every array whole in memory; for images smaller than one window."""
    plans = load_bundle(fold_folders[0]).plans
    volume = read_image([path])
    image, properties = preprocess_image(volume, plans)
    origin = centred_origin(image.shape[2:], plans.window)
    total = []
    for folder in fold_folders:
        model = load_bundle(folder).model
        logits = []
        for axes in mirrored:
            stack = read_slab(image, 0, image.shape[1], plans.max_offset, origin=origin, window=plans.window)
            inputs = encoder_inputs(stack.flip([axis - 3 for axis in axes]), plans)
            found = model.decode(model.encode(inputs)).movedim(1, 0)  # (K, S, h, w)
            back = (-origin[0], -origin[1])
            logits.append(crop_or_pad(found.flip([axis + 1 for axis in axes]), back, (image.shape[2], image.shape[3])))
        total.append(torch.stack(logits).mean(0).softmax(0))
    scores = np.moveaxis(torch.stack(total).mean(0).numpy(), 1, 1 + properties.slice_axis)
    native = np.zeros((plans.num_classes, *properties.canonical_size), np.float32)
    native[0] = 1
    crop = tuple(slice(first, first + size) for first, size in zip(properties.crop_start, properties.crop_size, strict=True))
    native[:, *crop] = resample(scores, properties.crop_size, 1)
    return np.asarray(from_canonical(native, volume.geometry))


@pytest.fixture(autouse=True)
def _here(users_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsam_pipeline.pipeline.segmenter.autocast_dtype", lambda _device: None)  # to compare with the plain answer


def lie_where_their_images_lie(paths: Sequence[Path], folder: str, number_of_classes: int) -> None:
    for path in paths:
        mask = read_labels(Path(folder) / path.name.replace("_0000", ""))
        image = read_image([path])
        assert mask.geometry.size == image.geometry.size
        np.testing.assert_allclose(mask.geometry.corners(), image.geometry.corners(), atol=1e-3)
        assert mask.array.max() < number_of_classes
        empty = to_canonical(image).array[0] == 0
        assert not to_canonical(mask).array[empty].any()


@pytest.mark.parametrize("axis", [0, 2])
def test_two_folds_with_mirroring_equal_the_plain_answer(axis: int, capsys: pytest.CaptureFixture[str]) -> None:
    plans = make_tiny_plans(slice_axis=axis, target_spacing=(1.3, 1.0, 1.6), window=(56, 56), image_size=56, training={"mirror_axes": (2,)})
    run = train(Path("model"), plans, (0, 1))
    paths = images(Path("imgs"), 2)
    assert predict(["-i", "imgs", "-o", "masks", "-m", "model", "--save_probabilities", "-device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 mask(s) written to masks"
    lie_where_their_images_lie(paths, "masks", 3)
    for path in paths:
        expected = plain_answer(path, [run / "fold_0", run / "fold_1"], [(), (2,)])
        case = path.name.removesuffix("_0000.nii.gz")
        found = open_probabilities(Path("masks") / f"{case}_probabilities.b2nd")
        np.testing.assert_allclose(found.array[:], expected, atol=3e-3)
        ordered = np.sort(expected, axis=0)
        clear = ordered[-1] - ordered[-2] > 3e-3
        assert clear.mean() > 0.8
        mask = read_labels(Path("masks") / f"{case}.nii.gz").array
        assert np.array_equal(mask[clear], expected.argmax(axis=0)[clear])
        assert len(np.unique(mask)) > 1, "nothing was found: the comparison says little"


def test_folds_that_slices_mix_in_agree_however_they_are_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    """Overlapping slabs and windows, all mirrorings: two folds at once, and each alone and averaged by ``fedsam_ensemble``."""
    offsets: Any = ({"channel": 0, "offset": 0},)
    plans = make_tiny_plans(
        slice_mixing="mixer",
        encoder_inputs=(offsets,) * 3,
        window=(14, 14),
        target_spacing=(1.1, 2.0, 0.9),
        training={"mirror_axes": (0, 1)},
    )
    train(Path("model"), plans, (0, 1))
    paths = images(Path("imgs"), 2)
    common = ["-i", "imgs", "-m", "model", "-device", "cpu", "--save_probabilities", "-step_size", "0.6"]
    assert predict([*common, "-o", "both"]) == 0
    for fold in ("0", "1"):
        assert predict([*common, "-o", f"fold_{fold}", "-f", fold]) == 0
    assert ensemble(["-i", "fold_0", "fold_1", "-o", "averaged", "--save_probabilities"]) == 0
    assert predict([*common, "-o", "small", "--max_memory", "0.01"]) == 0
    for folder in ("both", "averaged", "small"):
        lie_where_their_images_lie(paths, folder, 3)
    for case in ("case0", "case1"):
        both, averaged, small = (open_probabilities(Path(f) / f"{case}_probabilities.b2nd").array[:] for f in ("both", "averaged", "small"))
        np.testing.assert_allclose(small, both, atol=1e-3)
        np.testing.assert_allclose(averaged, both, atol=0.1)  # softmax before resampling or after it
        same = read_labels(Path("both") / f"{case}.nii.gz").array == read_labels(Path("averaged") / f"{case}.nii.gz").array
        assert same.mean() > 0.97


def test_models_that_see_other_slices_are_averaged() -> None:
    """Views: one plan a slice axis, other spacings, one mask."""
    paths = images(Path("imgs"), 1)
    expected = []
    for axis, spacing in ((0, (1.3, 1.0, 1.6)), (1, (1.0, 1.5, 1.0)), (2, (2.0, 1.0, 1.2))):
        plans = make_tiny_plans(slice_axis=axis, target_spacing=spacing, window=(56, 56), image_size=56)
        run = train(Path(f"model_{axis}"), plans, (axis,))
        assert predict(["-i", "imgs", "-o", f"view_{axis}", "-m", str(run), "-device", "cpu", "--save_probabilities"]) == 0
        expected.append(open_probabilities(Path(f"view_{axis}") / "case0_probabilities.b2nd").array[:].astype(np.float32))
    assert ensemble(["-i", "view_0", "view_1", "view_2", "-o", "masks"]) == 0
    lie_where_their_images_lie(paths, "masks", 3)
    mean = np.mean(expected, axis=0)
    ordered = np.sort(mean, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-6
    mask = read_labels(Path("masks/case0.nii.gz")).array
    assert np.array_equal(mask[clear], mean.argmax(axis=0)[clear])
