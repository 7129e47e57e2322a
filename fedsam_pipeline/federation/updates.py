"""Checks on tensors that come from another machine: names, shapes, types, finite values. Nothing else is let in."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsam_pipeline.specs.manifest import Manifest


class UpdateRefused(ValueError):
    """A message carries something that the manifest does not allow. The text holds no value of any tensor."""


def checked_tensors(manifest: Manifest, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, Tensor]:
    """The manifest's federated tensors out of a message, as float32, in the manifest's order.

    Raises:
        UpdateRefused: a name is unknown or missing, a shape or type differs, or a value is NaN or infinite.
    """
    allowed = {entry.name: entry for entry in manifest.federated}
    unknown, missing = sorted(set(arrays) - set(allowed)), sorted(set(allowed) - set(arrays))
    if unknown or missing:
        raise UpdateRefused(f"{len(unknown)} unknown and {len(missing)} missing tensors, such as {(unknown + missing)[0]!r:.80}")
    tensors = {}
    for name, entry in allowed.items():
        array = arrays[name]
        if array.shape != entry.shape or array.dtype != np.float32:
            raise UpdateRefused(f"{name}: found {array.dtype} {array.shape}, expected float32 {entry.shape}")
        if not np.isfinite(array).all():
            raise UpdateRefused(f"{name}: NaN or infinite values")
        tensors[name] = torch.from_numpy(array.copy())
    return tensors
