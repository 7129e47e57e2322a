"""fedsam_compare: several methods on one dataset, one table."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsam_pipeline.entrypoints.command import command_parser, positive_float, positive_int, run_command
from fedsam_pipeline.errors import FedsamError

if TYPE_CHECKING:
    from fedsam_pipeline.specs.comparison import MethodGrid

GRID_FLAGS = ("protocols", "strategies", "wires", "learning_rates", "random_encoder")
"""what a methods file says in their place"""


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser(
        "fedsam_compare",
        "Train a grid of methods, score all of them on the same cases, write one table. Runs that are done are kept and interrupted ones "
        "continue: repeat the command.",
    )
    parser.add_argument("-d", metavar="DATASET", help="number or name of the dataset; not needed when only one is planned")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--recipes", type=_names, metavar="A,B", help="recipes: names, or TOML files")
    chosen.add_argument("--methods", type=Path, metavar="FILE", help="TOML file of several grids, in place of the flags from --recipes on")
    parser.add_argument(
        "--protocols",
        type=_names,
        metavar="A,B",
        help="some of federated, local, centralized, leave_one_site_out (default: federated)",
    )
    parser.add_argument(
        "--strategies",
        type=_names,
        metavar="A,B",
        help="aggregation of federated and leave_one_site_out: a strategy, or with a LoRA method as fedavg+flexlora (default: the "
        "recipe's)",
    )
    parser.add_argument("--wires", type=_names, metavar="A,B", help="some of fp32, fp16, int8, int4 (default: the recipe's)")
    parser.add_argument("--learning_rates", type=_names, metavar="A,B", help="peak learning rates (default: the recipe's, or the plan's)")
    parser.add_argument("--random_encoder", action="store_true", help="control experiment: draw the image encoder at random")
    parser.add_argument("--seeds", type=positive_int, default=1, metavar="N", help="training seeds 0 to N-1")
    parser.add_argument(
        "--steps",
        type=positive_int,
        metavar="S",
        help="optimizer steps a site, in rounds of the plan's local steps; centralized takes the steps of all sites (default: the plan's)",
    )
    parser.add_argument("--local_steps", type=positive_int, metavar="N", help="optimizer steps of a round (default: the plan's)")
    parser.add_argument(
        "-f",
        nargs="+",
        default=["0"],
        metavar="FOLD",
        help="folds 0 to 4, the cases of several in one table; 0-inner for choosing, which leaves fold 0's cases unseen",
    )
    parser.add_argument("-p", default="plans", metavar="PLANS", help="name of the plans")
    parser.add_argument(
        "-o", type=Path, metavar="OUT", help="folder of the tables (default: comparison__PLANS__fold_K, or folds_K_L, in the results)"
    )
    parser.add_argument("-device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute")
    parser.add_argument("--workers", type=positive_int, help="sites that compute at the same time (default: as many as cores)")
    parser.add_argument("-gpu_memory_target", type=positive_float, metavar="GIB", help="as of fedsam_train_federated")
    parser.add_argument("--overwrite", action="store_true", help="start all runs of this comparison over")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _grids(arguments: argparse.Namespace) -> "tuple[MethodGrid, ...]":
    from fedsam_pipeline.specs.comparison import MethodGrid, load_methods

    given = {flag: value for flag in GRID_FLAGS if (value := getattr(arguments, flag))}
    if arguments.methods is None:
        return (MethodGrid.from_dict({"recipes": arguments.recipes} | given, fix="mend these flags"),)
    if given:
        raise FedsamError(
            "the methods are given twice",
            found=f"--methods and {', '.join(f'--{flag}' for flag in given)}",
            expected="the file, or the flags",
            fix="say it in the file",
        )
    return load_methods(arguments.methods)


def _body(arguments: argparse.Namespace) -> int:
    from fedsam_pipeline.pipeline.compare import compare
    from fedsam_pipeline.pipeline.compare_grid import CompareRequest
    from fedsam_pipeline.pipeline.plans_file import planned_dataset

    grids = _grids(arguments)
    folders, preprocessed = planned_dataset(arguments.d, arguments.p)
    request = CompareRequest(
        grids=grids,
        seeds=arguments.seeds,
        steps=arguments.steps,
        local_steps=arguments.local_steps,
        folds=tuple(arguments.f),
        plans_name=arguments.p,
        device=arguments.device,
        workers=arguments.workers,
        gpu_memory_target=arguments.gpu_memory_target,
        overwrite=arguments.overwrite,
    )
    return compare(preprocessed, folders.raw, folders.results, request, arguments.o)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
