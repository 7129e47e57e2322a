"""Learning rate as a function of round and step only, so that no site's clock can drift."""

import math

from fedsam_pipeline.specs.recipe import ScheduleRecipe


def learning_rate(peak: float, schedule: ScheduleRecipe, *, round_number: int, step: int, rounds: int, local_steps: int) -> float:
    """Linear warm-up, then a cosine (Loshchilov & Hutter, ICLR 2017) down to ``final_fraction`` of the peak, or constant.

    Args:
        peak: largest learning rate.
        schedule: the recipe's.
        round_number: from 1 to ``rounds``.
        step: from 0 to ``local_steps - 1``.
        rounds: of the whole run.
        local_steps: of each round.
    """
    total = rounds * local_steps
    done = (round_number - 1) * local_steps + step
    warmup = round(schedule.warmup_fraction * total)
    if done < warmup:
        return peak * (done + 1) / warmup
    if schedule.name == "constant":
        return peak
    progress = (done - warmup) / max(1, total - 1 - warmup)
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
