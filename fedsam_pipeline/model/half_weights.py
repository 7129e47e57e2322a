"""Frozen weights in autocast's precision for as long as a round of training takes.

Autocast casts a weight at every call. Those that train change between calls; frozen ones are cast to the same values again and again: of
ViT-B 86 million at every forward pass. Cast once, the model computes the same bits.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

CAST_BY_AUTOCAST = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
"""modules whose weight and bias autocast casts; those of norms, embeddings and position tables stay float32"""


@contextmanager
def frozen_weights_in(model: nn.Module, dtype: torch.dtype | None, trained: Collection[str]) -> Iterator[None]:
    """Within the context weights that do not train are held in ``dtype``; afterwards they are what they were, bit for bit.

    Args:
        model: is computed under autocast to ``dtype`` and in no other way within the context.
        dtype: autocast's; ``None``, without autocast, changes nothing.
        trained: names of the parameters that are left alone.
    """
    parameters = {
        f"{name}.{key}" if name else key: parameter
        for name, module in model.named_modules()
        if isinstance(module, CAST_BY_AUTOCAST)
        for key, parameter in (("weight", module.weight), ("bias", module.bias))
        if parameter is not None
    }
    held = [(parameter, parameter.data) for name, parameter in parameters.items() if name not in trained and dtype is not None]
    try:
        for parameter, data in held:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in held:
            parameter.data = data
