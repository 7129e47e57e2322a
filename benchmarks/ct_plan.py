"""The plan of a made-up CT dataset, for benchmarks that need a plan and no dataset."""

from fedsam_pipeline.specs.plans import ChannelPlan, InputTerm, Plans, PromptPlan, ResamplingPlan, TrainingPlan

WIDE = (-1000.0, 400.0)
"""HU of everything from air to bone"""


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
