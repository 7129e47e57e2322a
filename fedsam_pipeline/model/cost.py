"""What a base model's encoder costs as published, counted on shapes alone: no weights are needed and nothing is computed."""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.vit import published_vit

NUM_CLASSES = 2
"""any number: the encoder does not know it"""


@cache
def encoder_gflop(base_model: str, image_size: int) -> float:
    """Floating-point operations of encoding one image, in units of 1e9; a multiply-add counts as two (torch's counter).

    Args:
        base_model: a name of the registry.
        image_size: side in pixels, a multiple of its ``window_multiple``.

    Raises:
        FedsamError: an unknown base model, or a size that does not fit its encoder.
    """
    spec = base_model_spec(base_model)
    with torch.device("meta"):
        model = PromptFreeSam(spec, NUM_CLASSES, image_size).eval()
        if spec.encoder == "vit":  # ours multiplies more or less, to move less memory: not the work there is
            model.image_encoder = published_vit(spec, image_size)
        image = torch.empty(1, 3, image_size, image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.encode(image)
    return float(counter.get_total_flops()) / 1e9
