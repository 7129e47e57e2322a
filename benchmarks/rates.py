"""Which learning rate a recipe needs: short centralized trainings on the inner fold, which sees none of fold 0's validation cases.

python -m benchmarks.rates PREPROCESSED -r RECIPE [RECIPE ...] --rates 1e-3 5e-3 [-p plans] [--steps 100] [--warmup 0.1] [--keep FILE]

PREPROCESSED is a planned and preprocessed dataset (`fedsam_plan_and_preprocess`). Every recipe is trained on the training part of fold
`0-inner`, all sites as one, once with every rate, from the same seed on the same slabs, and scored on that fold's validation cases on the
plan's grid. A centralized step is as large as a step of one site, so S of them are near a federation of S steps a site.

Printed: mean loss, Dice of each site, their mean, seconds. A line each is appended to `--keep` (default benchmarks/results/rates.jsonl);
what stands there for the same plan, recipe, rate, warm-up and steps is not trained again, whichever machine it is of.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import records
from fedsam_pipeline.flower.site_worker import SiteWorker
from fedsam_pipeline.memory import keep_freed_memory
from fedsam_pipeline.pipeline.environment import hardware
from fedsam_pipeline.pipeline.train_request import INNER, RunSetup, TrainRequest, run_setups
from fedsam_pipeline.specs.recipe import Recipe

RESULTS = records.RESULTS / "rates.jsonl"


def known_lines(path: Path) -> Iterator[dict[str, Any]]:
    """What earlier calls found; nothing where there is no file."""
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def tried(recipe: Recipe, rate: float, warmup: float | None) -> Recipe:
    """The recipe with the rate that is tried, whatever its own, and with another share of its steps spent warming up where one is given."""
    schedule = recipe.schedule if warmup is None else recipe.schedule.model_copy(update={"warmup_fraction": warmup})
    optimizer = recipe.optimizer.model_copy(update={"learning_rate": rate})
    return recipe.model_copy(update={"schedule": schedule, "optimizer": optimizer})


def train_and_score(setup: RunSetup) -> dict[str, Any]:
    """Mean loss, seconds of training, and Dice of every site and their mean."""
    worker = SiteWorker(setup.sites[0])
    start = worker.held(0)
    worker.take(start, {})
    encoded, result = worker.train(setup.schedule, 1)
    worker.receive(encoded.payload, {}, rounds_done=1)
    dice = {site: scores.dice for site, scores in worker.evaluate(rounds_done=1).items()}
    known = [value for value in dice.values() if value is not None]
    return {"loss": result.loss, "seconds": result.seconds, "sites": dice, "dice": sum(known) / len(known) if known else None}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preprocessed", type=Path)
    parser.add_argument("-p", default="plans", help="name of the plan")
    parser.add_argument("-r", nargs="+", required=True, help="recipes: names, or TOML files")
    parser.add_argument("--rates", nargs="+", type=float, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warmup", type=float, help="share of the steps that warm up (default: the recipe's)")
    parser.add_argument("--keep", type=Path, default=RESULTS, help="file of the results")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"{'recipe':<18}{'rate':>9}{'warm-up':>9}{'loss':>8}  Dice of the sites, mean{'seconds':>9}")
    for name in arguments.r:
        for rate in arguments.rates:
            with tempfile.TemporaryDirectory() as scratch:
                request = TrainRequest(
                    recipe=name,
                    plans_name=arguments.p,
                    fold=f"0{INNER}",
                    protocol="centralized",
                    rounds=1,
                    local_steps=1,
                    learning_rate=rate,
                )
                (setup,) = run_setups(arguments.preprocessed, Path(scratch), request)
                show(one(setup, arguments.steps, arguments.warmup, arguments.keep))
    return 0


def one(setup: RunSetup, steps: int, warmup: float | None, keep: Path) -> dict[str, Any]:
    """The line of one training, from the file or made now."""
    recipe = tried(setup.model.recipe, setup.schedule.peak_learning_rate, warmup)
    model = replace(setup.model, recipe=recipe)
    setup = replace(setup, model=model, schedule=replace(setup.schedule, local_steps=steps), sites=(replace(setup.sites[0], model=model),))
    what = {
        "dataset": setup.model.plans.dataset_name,
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256(),
        "plan_sha256": setup.model.plans.sha256(),
        "rate": setup.schedule.peak_learning_rate,
        "warmup": recipe.schedule.warmup_fraction,
        "steps": steps,
    }
    for line in known_lines(keep):
        if all(line.get(key) == value for key, value in what.items()):
            return line
    found = what | train_and_score(setup) | {"hardware": hardware("auto")}
    records.keep(keep, found)
    return found


def show(line: dict[str, Any]) -> None:
    """A line of the table."""
    sites = " ".join("-" if value is None else f"{value:.4f}" for value in line["sites"].values())
    mean = "-" if line["dice"] is None else f"{line['dice']:.4f}"
    what = f"{line['recipe']:<18}{line['rate']:>9g}{line['warmup']:>9g}"
    print(f"{what}{line['loss']:>8.4f}  {sites}  {mean}{line['seconds']:>9.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
