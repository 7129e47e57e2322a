"""Fixtures that several rooms share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run beside each other

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.weights import find_weights
from fedsam_pipeline.specs.plans import ChannelPlan, InputTerm, Plans, PromptPlan, ResamplingPlan, TrainingPlan

torch.set_num_threads(1)
settings.register_profile("same_every_time", derandomize=True, deadline=None)  # a landing must not depend on the draw
settings.load_profile("same_every_time")


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a user who starts: empty, and no variable names a data folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("fedsam_raw", "fedsam_preprocessed", "fedsam_results"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def weights() -> Path:
    """LiteMedSAM's real weights; the Makefile puts them into the cache before the tests run."""
    path = find_weights(base_model_spec("lite_medsam"))
    assert path is not None
    return path


@pytest.fixture
def tiny_plans() -> Plans:
    """A plan for the random tiny model: two foreground classes, 28 pixels, one channel with its neighbours."""
    return make_tiny_plans()


def make_tiny_plans(**changes: object) -> Plans:
    """See ``tiny_plans``; ``changes`` replace top-level keys, ``training`` takes a dict of changed keys."""
    training = TrainingPlan(
        effective_batch=4,
        rounds=2,
        local_steps=2,
        learning_rate=1e-3,
        lora_rank=2,
        foreground_fraction=0.5,
        mirror_axes=(),
    )
    changed_training = changes.pop("training", {})
    values = {
        "plans_name": "plans",
        "dataset_name": "Dataset001_Demo",
        "base_model": "tiny_random",
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "channels": (ChannelPlan(name="MRI", scheme="zscore"),),
        "target_spacing": (1.0, 1.0, 1.0),
        "slice_axis": 0,
        "image_size": 28,
        "window": (28, 28),
        "window_overlap": 0.5,
        "slab_depth": 2,
        "slice_mixing": "neighbours",
        "encoder_inputs": tuple((InputTerm(channel=0, offset=offset),) for offset in (-1, 0, 1)),
        "resampling": ResamplingPlan(image_order=1, image_order_coarse_axis=1, label_order=1),
        "prompts": PromptPlan(mode="auto", jitter_mm=0.0, dropout=1.0),
        "training": training.model_copy(update=changed_training),  # type: ignore[arg-type]
        "fingerprint_sha256": "0" * 64,
        "why": {},
    }
    return Plans.model_validate(values | changes)
