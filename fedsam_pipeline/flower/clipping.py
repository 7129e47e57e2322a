"""Clipping of a site's update by its norm, at the site and again at the server."""

from collections.abc import Mapping

import torch
from flwr.supercore.differential_privacy import compute_clip_model_update
from torch import Tensor

CLIP = "dp_clip"
"""key of the train message's config: the largest norm of an update; without it nothing is clipped"""
EPSILON = "dp_epsilon"
"""key of a message's config: what the states told so far have spent, the one that it carries included"""


def clipped(tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor], norm: float) -> dict[str, Tensor]:
    """The tensors with their distance from ``reference`` scaled down to ``norm``, if it is larger; by Flower's ``FlatClip``
    (McMahan et al., ICLR 2018, arXiv:1710.06963).

    Args:
        tensors: by name, finite.
        reference: the same names and shapes.
        norm: L2, over all tensors together.

    Returns:
        float64, so that rounding takes nothing from the bound.
    """
    names = sorted(tensors)
    values, references = ([each[name].detach().cpu().to(torch.float64).numpy().ravel() for name in names] for each in (tensors, reference))
    if any((value != other).any() for value, other in zip(values, references, strict=True)):  # Flower divides by the distance
        compute_clip_model_update(values, references, norm)
    return {name: torch.from_numpy(value).reshape(tensors[name].shape) for name, value in zip(names, values, strict=True)}
