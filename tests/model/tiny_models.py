"""The smallest models of both encoder kinds, seeded at random."""

import pytest

from fedsam_pipeline.model.registry import BASE_MODELS
from fedsam_pipeline.specs.base_model import BaseModelSpec, DecoderShape, EncoderShape

TINY_VIT = "tiny_random"
"""of the registry: three attention blocks, stride 4"""
SMALL_VIT = "vit_for_tests"
"""four attention blocks, stride 16, sixteenfold head"""
IMAGE_SIZE = {TINY_VIT: 28, SMALL_VIT: 64}


def register_small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds ``SMALL_VIT`` to the registry for one test."""
    spec = BaseModelSpec(
        name=SMALL_VIT,
        encoder="vit",
        encoder_shape=EncoderShape(embed_dims=(16,), depths=(4,), heads=(2,), windows=(2,), global_attention=(1, 3)),
        decoder_shape=DecoderShape(dim=32, mlp_dim=32, heads=2),
        stride=16,
        window_multiple=32,
        native_size=64,
        input_shift=(0.0, 0.0, 0.0),
        input_scale=(1.0, 1.0, 1.0),
        weights=None,
    )
    monkeypatch.setitem(BASE_MODELS, SMALL_VIT, spec)
