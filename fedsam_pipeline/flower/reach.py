"""How far an update, and a state, of a run can be from where it began: its schedule and its wire, and the optimizer's own bound."""

from dataclasses import replace
from functools import lru_cache

from fedsam_pipeline.federation.update_bounds import CARRIED, UpdateBound
from fedsam_pipeline.specs.manifest import Wire
from fedsam_pipeline.specs.recipe import Recipe, ScheduleRecipe
from fedsam_pipeline.training.local_trainer import RunSchedule
from fedsam_pipeline.training.schedule import learning_rate


def update_bound(recipe: Recipe, schedule: RunSchedule, wire: Wire, round_number: int) -> UpdateBound:
    """Of what a site sends in a round, from what it received: its own steps, and what the wire owed of an earlier round.

    Args:
        recipe: of the run.
        schedule: of the whole run.
        wire: how states and updates travel.
        round_number: from 1.
    """
    return _bound(recipe, schedule, wire, round_number, round_number)


def state_bound(recipe: Recipe, schedule: RunSchedule, wire: Wire, rounds_done: int) -> UpdateBound:
    """Of what the server sends after so many rounds, from the state at round 0, where what it makes of updates lies between them.

    Args:
        recipe, schedule, wire: as in :func:`update_bound`.
        rounds_done: 0 or more.
    """
    return _bound(recipe, schedule, wire, 1, rounds_done)


def _bound(recipe: Recipe, schedule: RunSchedule, wire: Wire, first: int, last: int) -> UpdateBound:
    """After all steps of rounds ``first`` to ``last``."""
    seedless = replace(schedule, seed=0)  # rates know no seed, which may be another in every message
    paths = [_path(seedless, recipe.schedule, number) for number in range(1, last + 1)]
    return UpdateBound(recipe.optimizer, sum(paths[first - 1 :]) + CARRIED[wire] * max(paths, default=0.0))


@lru_cache(maxsize=4096)
def _path(schedule: RunSchedule, shape: ScheduleRecipe, round_number: int) -> float:
    """The learning rates of a round's steps, added up."""
    rounds, steps = schedule.rounds, schedule.local_steps
    rates = (
        learning_rate(schedule.peak_learning_rate, shape, round_number=round_number, step=step, rounds=rounds, local_steps=steps)
        for step in range(steps)
    )
    return sum(rates)
