"""How many images of a step fit into memory at once: one probe step decides, gradient accumulation keeps the step the same."""

import logging

import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.cast_linear import CastLinear
from fedsam_pipeline.model.recompute import encoder_blocks, set_recompute
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.preprocessing.budget import USABLE_SHARE, free_memory
from fedsam_pipeline.specs.execution import Execution

WORKSPACE = 1.5
"""on the CPU, what a step takes for each byte that it keeps for the backward pass: gradients and temporaries come on top"""

log = logging.getLogger(__name__)


def memory_budget(device: torch.device, target_bytes: int | None, *, workers: int = 1) -> int:
    """Bytes that the images of one step may take.

    Args:
        device: where the model is.
        target_bytes: what the user allows (``-gpu_memory_target``); ``None``: most of what is free on the device now.
        workers: processes that share it.
    """
    if target_bytes is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        target_bytes = int(free * USABLE_SHARE)
    return max(1, target_bytes // workers)


def choose_execution(model: PromptFreeSam, batch: int, device: torch.device, dtype: torch.dtype | None, budget_bytes: int) -> Execution:
    """Probes what one image needs and divides the batch; the model's recomputation is left as chosen.

    Whole batches come first, then the largest divisor of the batch that fits, then the same with gradient checkpointing.

    Args:
        model: with its adapter, ready to train.
        batch: images of a whole optimizer step.
        device: where the model is.
        dtype: of autocast; ``None`` for float32.
        budget_bytes: see ``memory_budget``.

    Raises:
        FedsamError: not even one image with checkpointing fits.
    """
    needed = 0
    for recompute in (False, True):
        try:
            needed = probe_image_bytes(model, device, dtype, recompute=recompute)
        except torch.OutOfMemoryError:
            log.warning("one image does not fit into memory%s", " even with gradient checkpointing" if recompute else "")
            continue
        unit = model.slices_together
        fitting = [size for size in range(unit, batch + 1, unit) if batch % size == 0 and size * needed <= budget_bytes]
        if fitting:
            micro, mib = max(fitting), 1 << 20
            return Execution(
                device=device.type,
                micro_batch=micro,
                gradient_checkpointing=recompute,
                batch=batch,
                image_bytes=needed,
                budget_bytes=budget_bytes,
                why=f"an image takes {needed / mib:.1f} MiB{' with gradient checkpointing' if recompute else ''} and "
                f"{budget_bytes / mib:.0f} MiB may be used: {micro} of the step's {batch} at once",
            )
    set_recompute(model, False)
    raise FedsamError(
        "a training step does not fit into memory",
        found=f"{budget_bytes >> 20} MiB for the images of a step on {device.type}",
        expected=f"at least {needed * model.slices_together >> 20} MiB, for a single image (or slab) with gradient checkpointing",
        fix="free memory, raise -gpu_memory_target, use fewer --workers, or plan a smaller image_size",
    )


def apply_execution(model: PromptFreeSam, execution: Execution) -> None:
    """Sets the model up as ``execution`` says."""
    set_recompute(model, execution.gradient_checkpointing)


def probe_image_bytes(model: PromptFreeSam, device: torch.device, dtype: torch.dtype | None, *, recompute: bool) -> int:
    """Memory of one image in a training step, bytes: one forward and backward pass on an empty image, or on the slab that it belongs to
    where slices mix, divided by its slices; weights, their casts and gradients stay.

    On a GPU it is the allocator's peak above what was allocated before. On the CPU it is ``WORKSPACE`` times what autograd keeps, with
    gradient checkpointing plus the largest block, which the backward pass computes again: the same number on every run.

    Args:
        model: with its adapter; gradient checkpointing is left as ``recompute`` says.
        device, dtype: where it is, and autocast's type.
        recompute: whether encoder blocks are checkpointed.
    """
    with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        model(_empty_images(model, device))  # frozen weights are cast once, and no image pays for them
    if device.type == "cuda":
        set_recompute(model, recompute)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _probe(model, device, dtype)
        return int(torch.cuda.max_memory_allocated(device) - before) // model.slices_together
    set_recompute(model, False)
    kept, largest_block = _probe(model, device, dtype)
    if recompute:
        set_recompute(model, True)
        kept = _probe(model, device, dtype)[0] + largest_block
    return int(kept * WORKSPACE) // model.slices_together


def _empty_images(model: PromptFreeSam, device: torch.device) -> Tensor:
    return torch.zeros(model.slices_together, 3, model.image_size, model.image_size, device=device)


def _probe(model: PromptFreeSam, device: torch.device, dtype: torch.dtype | None) -> tuple[int, int]:
    """One step on empty images: bytes that autograd kept, and the most that one encoder block added to them."""
    image = _empty_images(model, device)
    casts = [cast for module in model.modules() if isinstance(module, CastLinear) for cast in module.kept_casts]
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), *casts)}
    kept: dict[int, torch.UntypedStorage] = {}  # by address, held so that none is given away twice: the same count on every run
    entered: list[int] = []
    added = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    def kept_bytes() -> int:
        return sum(storage.nbytes() for storage in kept.values())

    hooks = []
    for block in encoder_blocks(model.image_encoder):
        hooks.append(block.register_forward_pre_hook(lambda *_: entered.append(kept_bytes())))
        hooks.append(block.register_forward_hook(lambda *_: added.append(kept_bytes() - entered.pop())))
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                logits = model(image)
            loss = logits.float().square().mean()
        total = kept_bytes()
        kept.clear()  # the backward pass frees as it goes
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.autograd.grad(loss, trained, allow_unused=True)
    finally:
        model.eval()
        for hook in hooks:
            hook.remove()
    return total, max(added)
