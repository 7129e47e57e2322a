"""Base-model checkpoints: reading them safely, and fitting SAM's tensors to our image size and head."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import sha256_file
from fedsam_pipeline.model.sam import ADDED_BY_PLAN, SAM_MASK_TOKENS, PromptFreeSam
from fedsam_pipeline.specs.base_model import BaseModelSpec

StateDict = dict[str, Tensor]


def verify_hash(spec: BaseModelSpec, path: Path, *, origin: Path | str | None = None, fix: str | None = None) -> None:
    """Compares the file's SHA-256 with the registry's.

    Args:
        spec: the registry's entry.
        path: the file.
        origin: where the bytes came from, for the message; ``None`` is ``path`` itself.
        fix: what the user should do about it; ``None``: delete the file and download it again.

    Raises:
        FedsamError: the hashes differ.
    """
    assert spec.weights is not None
    found = sha256_file(path)
    if found != spec.weights.file_sha256:
        raise FedsamError(
            f"the weights of {spec.name} fail their hash check",
            path=origin or path,
            found=f"SHA-256 {found}, {path.stat().st_size} bytes",
            expected=f"SHA-256 {spec.weights.file_sha256}",
            fix=fix or f"delete the file, then fedsam_download_weights {spec.name}",
        )


def read_checkpoint(spec: BaseModelSpec, path: Path) -> StateDict:
    """The state dict of a base model: hash checked first, then loaded with ``weights_only=True``."""
    verify_hash(spec, path)
    loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    return dict(loaded)


@torch.no_grad()
def load_base(model: PromptFreeSam, state: StateDict) -> None:
    """Loads SAM's tensors into ``model``, strictly: every tensor of the checkpoint is used or fitted, none is ignored.

    What fits is copied. Position embeddings are resized (bicubic; relative positions linearly). Mask token ``k`` and its hyper-network
    start as SAM's token ``k mod 4``. Tensors of the sixteenfold head that SAM lacks keep their seeded values.

    Raises:
        FedsamError: a tensor is missing, unknown, or of a shape that no rule fits.
    """
    own = model.state_dict()
    fitted: StateDict = {}
    for name, target in own.items():
        source = _source_tensor(model, name, state)
        if source is None:
            fitted[name] = target
        elif source.shape == target.shape:
            fitted[name] = source
        else:
            fitted[name] = _resize(name, source, target)
    unknown = sorted(name for name in state if name not in own and not _may_be_left(name))
    if unknown:
        raise FedsamError(
            f"the checkpoint is not one of {model.spec.name}", found=f"unknown tensors {unknown[:3]}", expected="that model's tensors only"
        )
    model.load_state_dict(fitted, strict=True)


def _source_tensor(model: PromptFreeSam, name: str, state: StateDict) -> Tensor | None:
    """SAM's tensor for ours of that name; ``None`` where ours is new and stays as seeded."""
    if name.startswith(ADDED_BY_PLAN):
        return None
    if name == "mask_decoder.mask_tokens.weight":
        return _cycled(state[name], model.num_classes)
    if name.startswith("mask_decoder.iou_prediction_head.layers.2."):
        return _cycled(state[name], model.num_classes)
    if name.startswith("mask_decoder.output_hypernetworks_mlps."):
        parts = name.split(".")
        parts[2] = str(int(parts[2]) % SAM_MASK_TOKENS)
        last_layer = parts[4] == "2"
        return None if last_layer and model.spec.stride == 16 else state.get(".".join(parts))
    if name.startswith("mask_decoder.output_upscaling.") and name not in state:
        return None
    if name not in state:
        raise FedsamError(f"the checkpoint is not one of {model.spec.name}", found=f"no tensor {name}", expected="that model's tensors")
    if name.startswith("mask_decoder.output_upscaling.") and state[name].shape != model.state_dict()[name].shape:
        return None
    return state[name]


def _cycled(source: Tensor, count: int) -> Tensor:
    return source[torch.arange(count) % len(source)]


def _may_be_left(name: str) -> bool:
    """Hyper-networks of mask tokens that fewer classes do not need; the pixel statistics of Meta's wrapper."""
    return name.startswith("mask_decoder.output_hypernetworks_mlps.") or name in ("pixel_mean", "pixel_std")


def _resize(name: str, source: Tensor, target: Tensor) -> Tensor:
    if name.endswith("pos_embed"):  # (1, H, W, C)
        resized = functional.interpolate(source.permute(0, 3, 1, 2), size=target.shape[1:3], mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1)
    if name.endswith(("rel_pos_h", "rel_pos_w")):  # (2 * side - 1, C)
        return functional.interpolate(source.T[None], size=target.shape[0], mode="linear", align_corners=False)[0].T
    raise FedsamError("a tensor of the checkpoint has the wrong shape", found=f"{name} {tuple(source.shape)}", expected=tuple(target.shape))
