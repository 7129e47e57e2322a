"""Whether a federation is better for one site than training alone, on the validation cases of several folds.

python -m benchmarks.folds SITE [-d DATASET] [-p plans] [-r default] [-f 0 1 2 3 4] [--steps 600] [--local_steps 25] [--lr 5e-3]
    [--own_lr 5e-3] [--adapt_steps 0] [--adapt_lr 5e-3] [--interpolate 1] [--seeds 1] [--own_seeds 1] [--protocols ...] [--keep FILE]

For every fold the federation of all sites and SITE alone are trained with S steps a site, as `fedsam_compare --protocols federated,local`
does, and scored on the fold's validation cases on the images' own grid. What was begun goes on; what stands in `--keep` (default
benchmarks/results/folds.jsonl) for the same plan, recipe, fold, steps, rate and seed is not trained again, whichever machine it is of.

Rounds of `--local_steps` and the rate `--lr` are the federation's: a site alone averages with nobody, and has a rate of its own. Of several
seeds the mean Dice of a case counts; a site with few cases needs them most.

With `--adapt_steps N` SITE then goes on alone from the federation's model, N steps on its own cases at `--adapt_lr`, as with
`fedsam_train_federated --init FOLDER --protocol local --interpolate SHARE`. What is compared with it then trains S + N steps, so that both
have the same.

Printed: Dice of SITE's cases with the model of all sites (adapted, where that is asked for) and with its own, and their paired
difference with the bootstrap interval of `fedsam_compare`, for each fold and for the cases of all folds in one table.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import records
from benchmarks.rates import known_lines
from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.entrypoints.command import not_negative_int, positive_float, positive_int, share
from fedsam_pipeline.evaluation.intervals import paired_site_differences
from fedsam_pipeline.memory import keep_freed_memory
from fedsam_pipeline.model.device import choose_device
from fedsam_pipeline.pipeline.compare_scores import ScoredCases, scores_of
from fedsam_pipeline.pipeline.environment import hardware
from fedsam_pipeline.pipeline.plans_file import planned_dataset
from fedsam_pipeline.pipeline.train import train_all
from fedsam_pipeline.pipeline.train_request import RunSetup, TrainRequest, run_setups
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.specs.comparison import Protocol
from fedsam_pipeline.training.local_trainer import RunSchedule

RESULTS = records.RESULTS / "folds.jsonl"
PROTOCOLS: tuple[Protocol, ...] = ("federated", "local")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site")
    parser.add_argument("-d", help="number or name of the dataset")
    parser.add_argument("-p", default="plans", help="name of the plan")
    parser.add_argument("-r", default="default", help="recipe")
    parser.add_argument("-f", nargs="+", default=["0", "1", "2", "3", "4"], help="folds")
    parser.add_argument("--steps", type=positive_int, default=600, help="a site")
    parser.add_argument("--local_steps", type=positive_int, help="of a round of the federation (default: the plan's)")
    parser.add_argument("--lr", type=positive_float, help="peak learning rate of the federation (default: the recipe's)")
    parser.add_argument("--own_lr", type=positive_float, help="of the site alone (default: the recipe's)")
    parser.add_argument("--adapt_steps", type=not_negative_int, default=0, help="of the site alone, after the federation")
    parser.add_argument("--adapt_lr", type=positive_float, help="of these steps (default: the recipe's)")
    parser.add_argument("--interpolate", type=share, help="of these steps: how far from the federation's model to what they made of it")
    parser.add_argument("--seeds", type=positive_int, default=1, help="0 to N-1, of the federation")
    parser.add_argument("--own_seeds", type=positive_int, default=1, help="0 to N-1, of the site alone")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="train these alone; what misses is left out")
    parser.add_argument("--keep", type=Path, default=RESULTS, help="file of the results")
    arguments = parser.parse_args()
    if not arguments.adapt_steps and (arguments.adapt_lr or arguments.interpolate):
        parser.error("--adapt_lr and --interpolate are of the steps of --adapt_steps")
    keep_freed_memory()
    folders, preprocessed = planned_dataset(arguments.d, arguments.p)
    bench = Bench(folders.raw, preprocessed, folders.results, arguments.site, arguments.keep)
    pairs: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for fold in arguments.f:
        dice = {}
        for protocol, runs in runs_of(arguments, fold).items():
            lines = [bench.line(run, train=protocol in arguments.protocols) for run in runs]
            known = [dice_of(line, arguments.site) for line in lines if line is not None]
            if len(known) == len(lines):
                dice[protocol] = np.stack(known)
        if len(dice) == len(PROTOCOLS):
            pairs[fold] = (dice["federated"], dice["local"])
            show(f"fold {fold}", *pairs[fold])
        else:
            print(f"fold {fold}: not complete", flush=True)
    if len(pairs) > 1:
        together, alone = (np.concatenate([pair[side] for pair in pairs.values()], axis=1) for side in (0, 1))
        show(f"folds {' '.join(pairs)}", together, alone)
    return 0


@dataclass(frozen=True)
class Run:
    """A training of some steps a site; ``start``: that of the model which it goes on from."""

    request: TrainRequest
    steps: int
    start: "Run | None" = None


def runs_of(arguments: argparse.Namespace, fold: str) -> dict[Protocol, list[Run]]:
    """What is compared on a fold, by seed: the federation's models, adapted at the site if the flags say so, and the site's own."""
    plain = TrainRequest(recipe=arguments.r, plans_name=arguments.p, fold=fold, val_every=0, resume=True)
    together = replace(plain, local_steps=arguments.local_steps, learning_rate=arguments.lr)
    alone = replace(plain, protocol="local", learning_rate=arguments.own_lr)
    adapting = replace(plain, protocol="local", learning_rate=arguments.adapt_lr, interpolate=arguments.interpolate)
    federated = [Run(replace(together, seed=seed), arguments.steps) for seed in range(arguments.seeds)]
    if arguments.adapt_steps:
        federated = [Run(replace(adapting, seed=run.request.seed), arguments.adapt_steps, run) for run in federated]
    own = [Run(replace(alone, seed=seed), arguments.steps + arguments.adapt_steps) for seed in range(arguments.own_seeds)]
    return {"federated": federated, "local": own}


@dataclass(frozen=True)
class Bench:
    """Trains, scores and keeps runs. ``site``: whose models are asked for; ``kept``: file of the results."""

    raw: Path
    preprocessed: Path
    results: Path
    site: str
    kept: Path

    def line(self, run: Run, *, train: bool) -> dict[str, Any] | None:
        """Of one run: from the file, or trained and scored now; ``None`` where it is not there and ``train`` is false."""
        what = self._what(run)
        for line in known_lines(self.kept):
            if all(line.get(key) == value for key, value in what.items()):
                return line
        if not train:
            return None
        setup = self._train(run)
        names = sorted({case for site in setup.all_sites for case in site.val_cases})
        store = CaseStore(store_folder(self.preprocessed, setup.model.plans))
        cases = ScoredCases.of(load_raw_dataset(self.raw / self.preprocessed.name), store, names)
        scores = scores_of(setup.folder, cases, choose_device("auto"))
        of_case = [
            {"case": case, "site": site, "dice": [None if np.isnan(value) else float(value) for value in dice]}
            for case, site, dice in zip(cases.names, cases.sites, scores.dice, strict=True)
        ]
        found = what | {"cases": of_case, "hardware": hardware("auto")}
        records.keep(self.kept, found)
        return found

    def _what(self, run: Run) -> dict[str, Any]:
        """What decides the numbers of a run."""
        setup, _ = self._setup(run)
        return {
            "dataset": setup.model.plans.dataset_name,
            "recipe": setup.model.recipe.name,
            "recipe_sha256": setup.model.recipe.sha256(),
            "plan_sha256": setup.model.plans.sha256(),
            "fold": run.request.fold,
            "protocol": run.request.protocol,
            "site": self.site if run.request.protocol == "local" else None,
            **known_as(setup.schedule),
            "start": None
            if run.start is None
            else known_as(self._setup(run.start)[0].schedule) | {"interpolate": run.request.interpolate or 1.0},
        }

    def _train(self, run: Run) -> RunSetup:
        """A run that is trained, and before it the one that it goes on from."""
        start = None if run.start is None else self._train(run.start).folder
        setup, request = self._setup(run, start)
        train_all([setup], request)
        return setup

    def _setup(self, run: Run, start: Path | None = None) -> tuple[RunSetup, TrainRequest]:
        """Of all sites' federation, or of the site alone, with the request and its rounds. Its schedule needs no ``start``."""
        request = replace(run.request, init=start, interpolate=None if start is None else run.request.interpolate)
        planned = self._of_site(run_setups(self.preprocessed, self.results, request))
        request = replace(request, rounds=max(1, run.steps // planned.schedule.local_steps))
        return self._of_site(run_setups(self.preprocessed, self.results, request)), request

    def _of_site(self, setups: list[RunSetup]) -> RunSetup:
        return next(setup for setup in setups if setup.protocol != "local" or setup.sites[0].site == self.site)


def known_as(schedule: RunSchedule) -> dict[str, Any]:
    """The keys of a line that are of the schedule."""
    return {
        "steps": schedule.rounds * schedule.local_steps,
        "local_steps": schedule.local_steps,
        "rate": schedule.peak_learning_rate,
        "seed": schedule.seed,
    }


def dice_of(line: dict[str, Any], site: str) -> NDArray[np.float64]:
    """(N, K) Dice of the site's cases, sorted by name."""
    return np.array(
        [entry["dice"] for entry in sorted(line["cases"], key=lambda entry: entry["case"]) if entry["site"] == site], dtype=float
    )


def show(name: str, together: NDArray[np.float64], alone: NDArray[np.float64]) -> None:
    """A line of the table, of (seeds, N, K) Dice."""
    cases = together.shape[1]
    (found,) = paired_site_differences(together, alone, ["site"] * cases).values()
    said = f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    print(f"{name}: {cases} cases, together {np.nanmean(together):.4f}, alone {np.nanmean(alone):.4f}, difference {said}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
