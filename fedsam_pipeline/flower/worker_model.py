"""The model of a worker process, built once however many rounds and sites it serves."""

import logging

import torch
from torch import Tensor

from fedsam_pipeline.model.build import AdaptedModel, ModelSetup
from fedsam_pipeline.model.cast_linear import settle_frozen
from fedsam_pipeline.model.device import allow_tf32, autocast_dtype

log = logging.getLogger(__name__)
_models: dict[tuple[str, ...], tuple[AdaptedModel, dict[str, Tensor]]] = {}
"""The model of this process, and its trained tensors at round 0"""


def worker_model(model: ModelSetup, device_name: str, *, compiled: bool) -> tuple[AdaptedModel, dict[str, Tensor]]:
    """The model of this process, built once however many rounds and sites it serves, and a copy of its trained tensors at round 0."""
    key = (*model.agreement().values(), device_name, str(compiled))
    if key not in _models:
        _models.clear()
        adapted = model.build()
        device = torch.device(device_name)
        adapted.model.to(device)
        settle_frozen(adapted.model, autocast_dtype(device), compiled=compiled)
        allow_tf32(device)
        _models[key] = adapted, {name: tensor.cpu().clone() for name, tensor in adapted.trained_tensors().items()}
        log.info("built %s", model.plans.base_model)
    return _models[key]
