"""The trained model averaged with the one that it started from: ``--interpolate``.

A short training on the few cases of one site gains what is particular there and loses some of what many sites taught. A model on the line
between the two keeps most of both (WiSE-FT: Wortsman et al., CVPR 2022, arXiv:2109.01903).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.comparison import Protocol
from fedsam_pipeline.specs.manifest import Manifest


def checked_share(share: float | None, protocol: Protocol, *, starts: bool) -> float:
    """``--interpolate``, or 1: what was trained stays as it is.

    Args:
        share: the flag.
        protocol: of the run.
        starts: whether it starts from a trained model (``--init``).

    Raises:
        FedsamError: there is no model to average with, or several sites train.
    """
    if share is None:
        return 1.0
    if not starts or protocol != "local":
        raise FedsamError(
            "--interpolate is for a site that goes on alone from a trained model",
            found=f"--protocol {protocol}, {'with' if starts else 'without'} --init",
            expected="--init FOLDER --protocol local",
            fix="add what is missing, or leave --interpolate out",
        )
    return share


def require_shared(manifest: Manifest, share: float) -> None:
    """Refuses tensors that never leave their site: they are not in the model that a run starts from.

    Raises:
        FedsamError: the recipe has some, and ``share`` is not 1.
    """
    if share < 1 and manifest.personal:
        raise FedsamError(
            "--interpolate needs a model that is shared as a whole",
            found=f"{len(manifest.personal)} tensors that stay at their site, such as {manifest.personal[0].name}",
            expected="a recipe that federates all that it trains",
            fix="leave --interpolate out, or choose another recipe (-r)",
        )


def interpolated(start: Mapping[str, Tensor], trained: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """``start + share * (trained - start)``, tensor by tensor; LoRA's factors each for itself. Where ``share`` is 1, ``trained`` as it is.

    Args:
        start: name to tensor, at least the names of ``trained``.
        trained: name to tensor.
        share: from 0, the start, to 1.
    """
    return trained if share == 1 else {name: torch.lerp(start[name], tensor, share) for name, tensor in trained.items()}
