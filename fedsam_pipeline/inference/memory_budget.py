"""How many slices go through the model together, so that main memory suffices. Fewer take longer and change no result.

What prediction needs beside the volume is a multiple of what one slice needs; the multiples are chosen here. What a slice needs in the
model is measured with one slice; the rest is counted in bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.inference.probabilities import CUBE
from fedsam_pipeline.inference.windows import plane_windows
from fedsam_pipeline.model.compilation import uncompiled
from fedsam_pipeline.specs.case import CaseProperties

LIVE_TENSORS = 4
"""tensors of the size of the largest output of any module that are in memory at once: inputs, outputs, residuals"""
BATCH_BYTES = 1 << 30
"""what a batch may take in main memory where no limit is given; a CPU gains nothing from larger batches"""
SCORE_BYTES = 24
"""a voxel, class and slice of the batch, at target spacing: logits, their weighted part, probabilities and the sum of an ensemble"""
LABEL_BYTES = 2
"""a voxel, mirroring and slice of a window: its class, until all mirrorings are compared"""
READING_COPIES = 4
"""float32 volumes of the size of the image while it is read and preprocessed: file, array, normalized, resampled"""


@dataclass(frozen=True)
class SliceCost:
    """Bytes that one slice takes in the model, and that its embedding takes."""

    activations: int
    embedding: int


@dataclass(frozen=True)
class BatchSizes:
    """See ``Predictor`` for the first two, ``write_probabilities`` for the last.

    Attributes:
        needed: bytes of main memory that they add to the volume; an estimate.
    """

    batch_slices: int
    kept_embeddings: int | None
    native_slices: int
    needed: int


@torch.inference_mode()
def slice_cost(predictor: Predictor) -> SliceCost:
    """Sends blank slices through the model: one, or where slices mix one slab."""
    largest = 0

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal largest
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor):
                largest = max(largest, tensor.nbytes)

    size = predictor.plans.image_size
    count = predictor.plans.slab_depth if predictor.mixes_slices else 1
    hook = register_module_forward_hook(note)
    try:
        with predictor.precision(), uncompiled(predictor.model):
            embeddings = predictor.model.encode(torch.zeros(count, 3, size, size, device=predictor.device))
            logits = predictor.model.decode(embeddings)
    finally:
        hook.remove()
    largest = max(largest, embeddings.nbytes, logits.nbytes)
    return SliceCost(activations=LIVE_TENSORS * largest // count, embedding=embeddings.nbytes // count)


def batch_sizes(predictor: Predictor, cost: SliceCost, properties: CaseProperties, limit: int | None, used: int, most: int) -> BatchSizes:
    """What to choose for one case.

    Args:
        predictor: of the case.
        cost: of one of its slices.
        properties: of the case.
        limit: bytes that the process may use; ``None``: no limit, but batches of at most ``BATCH_BYTES``.
        used: bytes that the process uses before prediction, the volume included.
        most: slices of a batch at most.

    Returns:
        Sizes within the limit; the smallest that work where nothing fits.
    """
    plans = predictor.plans
    height, width = (properties.stored_size[axis] for axis in predictor.order[1:])
    on_device = predictor.device.type != "cpu"
    per_slice = SCORE_BYTES * plans.num_classes * (height * width + math.prod(plans.window)) + (0 if on_device else cost.activations)
    per_slice += LABEL_BYTES * len(predictor.mirrorings) * math.prod(plans.window)
    native_plane = math.prod(properties.canonical_size) // properties.canonical_size[properties.slice_axis]
    fixed = 2 * math.prod(properties.canonical_size) + 16 * plans.num_classes * native_plane
    row = 6 * plans.num_classes * native_plane  # float16: a slice as it waits, stacked, and turned to the image's axes
    views = len(plane_windows((height, width), plans.window, predictor.overlap)) * len(predictor.mirrorings)
    together = plans.slab_depth if predictor.mixes_slices else 0
    shared = views * together
    fixed += together * per_slice  # decoded at once, whatever the batch
    if limit is None:
        batch = max(1, min(most, BATCH_BYTES // per_slice))
        return BatchSizes(batch, None, CUBE, fixed + batch * per_slice + CUBE * row + shared * cost.embedding)
    free = max(0, limit - used - fixed - per_slice - row)  # beyond the smallest sizes
    batch = min(most, 1 + free // 2 // per_slice)
    native = min(CUBE, 1 + free // 4 // row)
    kept = 0 if on_device else min(shared, free // 4 // cost.embedding)
    needed = fixed + batch * per_slice + native * row + kept * cost.embedding
    return BatchSizes(batch, shared if on_device else kept, native, needed)


def set_batch_sizes(
    predictors: Sequence[Predictor], cost: SliceCost, properties: CaseProperties, limit: int | None, used: int, most: int
) -> BatchSizes:
    """Chooses and sets the batch sizes of all views of one case, which take turns.

    Arguments as :func:`batch_sizes`.

    Returns:
        Those of the view that needs most.
    """
    chosen = [batch_sizes(predictor, cost, properties, limit, used, most) for predictor in predictors]
    for predictor, sizes in zip(predictors, chosen, strict=True):
        predictor.batch_slices, predictor.kept_embeddings = sizes.batch_slices, sizes.kept_embeddings
    return max(chosen, key=lambda sizes: sizes.needed)


def used_memory() -> int:
    """Bytes of main memory that this process has in use."""
    return int(psutil.Process().memory_info().rss)


def reading_bytes(voxels: int) -> int:
    """What reading and preprocessing an image of so many voxels, all channels together, takes at most."""
    return READING_COPIES * 4 * voxels
