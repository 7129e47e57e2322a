"""Whether a federation is better for one site than training alone, on the validation cases of several folds.

python -m benchmarks.folds SITE [-d DATASET] [-p plans] [-r default] [-f 0 1 2 3 4] [--steps 600] [--local_steps 25] [--lr 5e-3]
    [--own_lr 5e-3] [--seeds 1] [--own_seeds 1] [--protocols ...] [--keep FILE]

For every fold the federation of all sites and SITE alone are trained with S steps a site, as `fedsam_compare --protocols federated,local`
does, and scored on the fold's validation cases on the images' own grid. What was begun goes on; what stands in `--keep` (default
benchmarks/results/folds.jsonl) for the same plan, recipe, fold, steps, rate and seed is not trained again, whichever machine it is of.

Rounds of `--local_steps` and the rate `--lr` are the federation's: a site alone averages with nobody, and has a rate of its own. Of several
seeds the mean Dice of a case counts; a site with few cases needs them most.

Printed: Dice of SITE's cases with the model of all sites and with its own, and their paired difference with the bootstrap interval of
`fedsam_compare`, for each fold and for the cases of all folds in one table.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import records
from benchmarks.rates import known_lines
from fedsam_pipeline.dataset.raw import load_raw_dataset
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
    parser.add_argument("--steps", type=int, default=600, help="a site")
    parser.add_argument("--local_steps", type=int, help="of a round of the federation (default: the plan's)")
    parser.add_argument("--lr", type=float, help="peak learning rate of the federation (default: the recipe's)")
    parser.add_argument("--own_lr", type=float, help="of the site alone (default: the recipe's)")
    parser.add_argument("--seeds", type=int, default=1, help="0 to N-1, of the federation")
    parser.add_argument("--own_seeds", type=int, default=1, help="0 to N-1, of the site alone")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="train these alone; what misses is left out")
    parser.add_argument("--keep", type=Path, default=RESULTS, help="file of the results")
    arguments = parser.parse_args()
    keep_freed_memory()
    folders, preprocessed = planned_dataset(arguments.d, arguments.p)
    pairs: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    seeds = {"federated": arguments.seeds, "local": arguments.own_seeds}
    for fold in arguments.f:
        dice = {}
        for protocol in PROTOCOLS:
            train = protocol in arguments.protocols
            lines = [
                one_run(folders.raw, preprocessed, folders.results, arguments, fold, protocol, seed, train=train)
                for seed in range(seeds[protocol])
            ]
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


def one_run(
    raw: Path, preprocessed: Path, results: Path, arguments: argparse.Namespace, fold: str, protocol: Protocol, seed: int, *, train: bool
) -> dict[str, Any] | None:
    """The line of one run: from the file, or trained and scored now; ``None`` where it is not there and ``train`` is false."""
    alone = protocol == "local"
    request = TrainRequest(
        recipe=arguments.r,
        plans_name=arguments.p,
        fold=fold,
        protocol=protocol,
        local_steps=None if alone else arguments.local_steps,
        learning_rate=arguments.own_lr if alone else arguments.lr,
        val_every=0,
        seed=seed,
        resume=True,
    )
    setup = setup_of(preprocessed, results, request, arguments.site)
    request = replace(request, rounds=max(1, arguments.steps // setup.schedule.local_steps))
    setup = setup_of(preprocessed, results, request, arguments.site)
    what = {
        "dataset": setup.model.plans.dataset_name,
        "recipe": setup.model.recipe.name,
        "recipe_sha256": setup.model.recipe.sha256(),
        "plan_sha256": setup.model.plans.sha256(),
        "fold": fold,
        "protocol": protocol,
        "site": arguments.site if alone else None,
        "steps": setup.schedule.rounds * setup.schedule.local_steps,
        "local_steps": setup.schedule.local_steps,
        "rate": setup.schedule.peak_learning_rate,
        "seed": seed,
    }
    for line in known_lines(arguments.keep):
        if all(line.get(key) == value for key, value in what.items()):
            return line
    if not train:
        return None
    train_all([setup], request)
    names = sorted({case for site in setup.all_sites for case in site.val_cases})
    cases = ScoredCases.of(load_raw_dataset(raw / preprocessed.name), CaseStore(store_folder(preprocessed, setup.model.plans)), names)
    scores = scores_of(setup.folder, cases, choose_device("auto"))
    of_case = [
        {"case": case, "site": site, "dice": [None if np.isnan(value) else float(value) for value in dice]}
        for case, site, dice in zip(cases.names, cases.sites, scores.dice, strict=True)
    ]
    found = what | {"cases": of_case, "hardware": hardware("auto")}
    records.keep(arguments.keep, found)
    return found


def setup_of(preprocessed: Path, results: Path, request: TrainRequest, site: str) -> RunSetup:
    """Of all sites' federation, or of ``site`` alone."""
    setups = run_setups(preprocessed, results, request)
    return next(setup for setup in setups if request.protocol != "local" or setup.sites[0].site == site)


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
