"""Rules on training: batch, steps, learning rate, LoRA rank, from the sizes of the dataset and its sites."""

import math

from fedsam_pipeline.planning.decision import Decision
from fedsam_pipeline.planning.thresholds import SliceMixingRules, TrainingRules


def effective_batch(image_side: int, total_slices: float, rules: TrainingRules, mixed: SliceMixingRules | None = None) -> Decision[int]:
    """Slices an optimizer step: a power of two.

    Args:
        image_side: side of the encoder's input, pixels.
        total_slices: slices of all cases of the federation at target spacing.
        rules: thresholds.
        mixed: thresholds of the slice mixer, where there is one: its slabs are deep, and a step needs several of them.
    """
    by_pixels = rules.pixels_per_step / image_side**2
    by_share = rules.max_batch_share * total_slices
    limit = max(rules.min_batch, min(rules.max_batch, by_pixels, by_share))
    batch = 2 ** math.floor(math.log2(limit) + 1e-9)
    why = (
        f"{rules.pixels_per_step} pixels are {by_pixels:.3g} images of {image_side} x {image_side}, {100 * rules.max_batch_share:g} % "
        f"of {total_slices:.0f} slices are {by_share:.3g}: power of two within [{rules.min_batch}, {rules.max_batch}]"
    )
    if mixed is None:
        return Decision(batch, why)
    slabs, slices = mixed.min_mixed_slabs, mixed.min_mixed_slices
    enough = 2 ** min(math.ceil(math.log2(slabs * slices)), math.floor(math.log2(rules.max_batch)))
    if batch >= enough:
        return Decision(batch, why)
    return Decision(enough, f"{why}, {batch}; but {slabs} slabs of the {slices} slices that the slice mixer needs make {enough}")


def rounds(total_slices: float, num_sites: int, batch: int, rules: TrainingRules) -> Decision[int]:
    """Rounds of ``local_steps`` that pass over the average site ``passes`` times."""
    slices = total_slices / num_sites
    wanted = rules.passes * slices / batch
    steps = min(max(wanted, rules.min_steps), rules.max_steps)
    return Decision(
        max(1, math.ceil(steps / rules.local_steps - 1e-9)),
        f"{rules.passes:g} passes over the average site's {slices:.0f} slices in batches of {batch} are {wanted:.0f} steps, within "
        f"[{rules.min_steps}, {rules.max_steps}]: {steps:.0f}, in rounds of {rules.local_steps}",
    )


def local_steps(rules: TrainingRules) -> Decision[int]:
    """Optimizer steps of a site in one round."""
    return Decision(rules.local_steps, f"aggregate every {rules.local_steps} steps: a balance of traffic and drift between sites")


def learning_rate(batch: int, rules: TrainingRules) -> Decision[float]:
    """Peak learning rate: square-root scaling for adaptive optimizers (Malladi et al., NeurIPS 2022)."""
    scale = math.sqrt(batch / rules.learning_rate_batch)
    return Decision(
        rules.learning_rate * scale,
        f"{rules.learning_rate:g} for a batch of {rules.learning_rate_batch}, times the square root of {batch}/{rules.learning_rate_batch}",
    )


def lora_rank(num_cases: int, rules: TrainingRules) -> Decision[int]:
    """More cases can teach more directions."""
    start, rank = max(entry for entry in rules.lora_ranks if entry[0] <= num_cases)
    return Decision(rank, f"{num_cases} cases; rank {rank} from {start} cases on")


def foreground_fraction(rules: TrainingRules) -> Decision[float]:
    """Share of slabs centred on foreground."""
    return Decision(
        rules.foreground_fraction, f"{rules.foreground_fraction:g} of the slabs hold foreground for certain, the others lie anywhere"
    )


def mirror_axes(rules: TrainingRules) -> Decision[tuple[int, ...]]:
    """Axes of mirroring."""
    why = "mirrors these axes (slice 0, height 1, width 2)" if rules.mirror_axes else "no mirroring: left and right organs are told apart"
    return Decision(rules.mirror_axes, why)
