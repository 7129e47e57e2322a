"""``fedsam_find_best_configuration -d DATASET``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, positive_int, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser(
        "fedsam_find_best_configuration",
        "Compares trained federated runs (recipes, views), alone and in pairs, on the cases that each fold did not train on, at all sites, "
        "and writes the command that predicts with the best. Sites send sums over their cases. Repeat the command to go on.",
    )
    parser.add_argument("-d", metavar="DATASET", help="number or name of the dataset; not needed when only one is planned")
    parser.add_argument("-p", default="plans", metavar="PLANS", help="name of the plans that tell which dataset is meant")
    parser.add_argument(
        "-f", dest="folds", nargs="+", default=["0", "1", "2", "3", "4"], choices=list("01234"), metavar="FOLD", help="folds to compare on"
    )
    parser.add_argument(
        "-m",
        dest="models",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders to compare (default: all federated ones with these folds)",
    )
    parser.add_argument("--disable_ensembling", action="store_true", help="no pairs: faster")
    parser.add_argument(
        "--privacy_floor",
        type=positive_int,
        metavar="N",
        help="patients that every sum of a site stands for, if more than planning asked for",
    )
    parser.add_argument("-device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute")
    parser.add_argument("--workers", type=positive_int, metavar="N", help="sites that compute at the same time (default: as many as cores)")
    return parser


def _body(arguments: argparse.Namespace) -> None:
    from fedsam_pipeline.pipeline.find_best import find_best_configuration
    from fedsam_pipeline.pipeline.plans_file import planned_dataset

    folders, preprocessed = planned_dataset(arguments.d, arguments.p)
    find_best_configuration(
        preprocessed,
        folders.raw,
        folders.results,
        folds=arguments.folds,
        models=arguments.models,
        pairs=not arguments.disable_ensembling,
        floor=arguments.privacy_floor,
        device=arguments.device,
        workers=arguments.workers,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
