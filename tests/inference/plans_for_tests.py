"""Small plans and a model whose right answer is known, for the tests of inference."""

from typing import Any

import torch
from torch import nn

from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.specs.plans import Plans


def make_plans(**changes: Any) -> Plans:
    """A valid plan of one channel and three classes; ``changes`` replaces keys."""
    values: dict[str, Any] = {
        "plans_name": "plans",
        "dataset_name": "Dataset001_Demo",
        "base_model": "fake",
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "channels": [{"name": "MR", "scheme": "zscore"}],
        "target_spacing": (2.0, 1.0, 1.0),
        "slice_axis": 0,
        "image_size": 8,
        "window": (8, 8),
        "window_overlap": 0.5,
        "slab_depth": 4,
        "slice_mixing": "neighbours",
        "encoder_inputs": [[{"channel": 0, "offset": offset}] for offset in (-1, 0, 1)],
        "resampling": {"image_order": 1, "image_order_coarse_axis": 1, "label_order": 1},
        "prompts": {"mode": "auto", "jitter_mm": 0.0, "dropout": 0.0},
        "training": {
            "effective_batch": 4,
            "rounds": 2,
            "local_steps": 2,
            "learning_rate": 1e-3,
            "lora_rank": 4,
            "foreground_fraction": 0.5,
            "mirror_axes": (1, 2),
        },
        "fingerprint_sha256": "0" * 64,
        "why": {},
    }
    return Plans.model_validate(values | changes)


class PixelwiseModel(nn.Module):
    """Logits of class k are ``weights[k] @ inputs``, pixel by pixel, so that windows and mirroring must not change them.

    Counts how often ``encode`` met each slice: the encoder's input 1 is the slice itself.
    """

    def __init__(self, num_classes: int = 3, weights: torch.Tensor | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(num_classes, 3, generator=generator) if weights is None else weights
        self.encoded_slices = 0
        self.batches: list[int] = []
        self.prompts: list[Prompts | None] = []

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The images themselves."""
        self.encoded_slices += len(images)
        self.batches.append(len(images))
        return images

    def decode(self, embeddings: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        """(N, 3, h, w) to (N, K, h, w); remembers the prompts."""
        self.prompts.append(prompts)
        return torch.einsum("kc,nchw->nkhw", self.weights, embeddings)


class MixingModel(PixelwiseModel):
    """The same, declared to mix slices: ``decode`` is given slabs."""

    mixes_slices = True

    def __init__(self) -> None:
        super().__init__()
        self.slabs: list[int] = []

    def decode(self, embeddings: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        """Remembers the depth of the slab; otherwise pixel by pixel."""
        self.slabs.append(len(embeddings))
        return super().decode(embeddings, prompts)
