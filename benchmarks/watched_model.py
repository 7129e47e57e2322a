"""A model that counts and times what it is asked."""

import time
from collections.abc import Callable

import torch

from benchmarks.ceiling import synchronize
from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.model.sam import PromptFreeSam


class WatchedModel:
    """What the predictor asks of a model (``SliceModel``), passed on.

    Args:
        model: that answers.
        device: where it is; a GPU is waited for after every answer, so watch only what is not compared.

    Attributes:
        encoded, decoded: images.
        encode_seconds, decode_seconds: that they took.
    """

    def __init__(self, model: PromptFreeSam, device: torch.device) -> None:
        self._model = model
        self._device = device
        self.encoded = self.decoded = 0
        self.encode_seconds = self.decode_seconds = 0.0

    @property
    def training(self) -> bool:
        """As of the model."""
        return self._model.training

    @property
    def mixes_slices(self) -> bool:
        """As of the model."""
        return self._model.mixes_slices

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """As of the model."""
        self.encoded += len(images)
        embeddings, seconds = self._timed(lambda: self._model.encode(images))
        self.encode_seconds += seconds
        return embeddings

    def decode(self, embeddings: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        """As of the model."""
        self.decoded += len(embeddings)
        logits, seconds = self._timed(lambda: self._model.decode(embeddings, prompts))
        self.decode_seconds += seconds
        return logits

    def _timed(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
        started = time.perf_counter()
        answer = run()
        synchronize(self._device)
        return answer, time.perf_counter() - started
