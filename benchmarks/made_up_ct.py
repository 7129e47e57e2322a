"""A made-up CT volume and a plan for it, for benchmarks that need no dataset. Nothing in them is medical."""

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.specs.plans import ChannelPlan, InputTerm, Plans, PromptPlan, ResamplingPlan, TrainingPlan

WIDE = (-1000.0, 400.0)
"""HU of everything from air to bone"""
ORGANS = (-40.0, 180.0)
"""HU of soft tissue: what a plan for an abdominal organ clips to"""
AIR, TISSUE, ORGAN = -1000.0, 30.0, 110.0
NOISE = 12.0


def ct_plan(
    base_model: str,
    image_size: int,
    *,
    classes: int,
    window: int,
    spacing: tuple[float, float, float],
    clip: tuple[float, float] = WIDE,
) -> Plans:
    """One CT channel, slices along the first axis that see their neighbours, square windows that overlap by half.

    Args:
        base_model: a name of the registry.
        image_size: pixels that a window is scaled to.
        classes: background included.
        window: voxels of a side.
        spacing: mm, (z, y, x).
        clip: lowest and highest HU.
    """
    low, high = clip
    return Plans(
        plans_name="plans",
        dataset_name="Dataset001_Large",
        base_model=base_model,
        labels={"background": 0} | {f"class_{number}": number for number in range(1, classes)},
        channels=(ChannelPlan(name="CT", scheme="ct", clip_low=low, clip_high=high, mean=(low + high) / 2, std=(high - low) / 3.5),),
        target_spacing=spacing,
        slice_axis=0,
        image_size=image_size,
        window=(window, window),
        window_overlap=0.5,
        slab_depth=1,
        slice_mixing="neighbours",
        encoder_inputs=((InputTerm(channel=0, offset=-1),), (InputTerm(channel=0, offset=0),), (InputTerm(channel=0, offset=1),)),
        resampling=ResamplingPlan(image_order=1, image_order_coarse_axis=0, label_order=1),
        prompts=PromptPlan(mode="auto", jitter_mm=0.0, dropout=1.0),
        training=TrainingPlan(
            effective_batch=4, rounds=1, local_steps=1, learning_rate=1e-3, lora_rank=4, foreground_fraction=0.5, mirror_axes=(1, 2)
        ),
        fingerprint_sha256="0" * 64,
        why={},
    )


def ct_volume(slices: int, side: int, air: int) -> NDArray[np.int16]:
    """HU (slices, side, side): an elliptic body of 0.8 x 0.6 sides with organs in it, and noise everywhere.

    Args:
        slices: all of them.
        side: of a slice, voxels.
        air: how many at each end lie outside the body and show air alone.
    """
    generator = np.random.default_rng(0)
    across = (np.arange(side) + 0.5) / side - 0.5
    body = (across[:, None] / 0.3) ** 2 + (across[None] / 0.4) ** 2 <= 1
    volume = np.empty((slices, side, side), dtype=np.int16)
    for s, plane in enumerate(volume):
        along = (s - slices / 2) / slices
        organ = ((across[:, None] - 0.1) / 0.12) ** 2 + ((across[None] + 0.15 * np.sin(9 * along)) / 0.16) ** 2 + (along / 0.3) ** 2 <= 1
        inside = body if air <= s < slices - air else np.zeros_like(body)
        hounsfield = np.where(inside, np.where(organ, ORGAN, TISSUE), AIR)
        plane[...] = np.round(hounsfield + NOISE * generator.standard_normal((side, side), dtype=np.float32))
    return volume
