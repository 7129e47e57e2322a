"""``fedsam_ensemble -i MASKS_A MASKS_B -o MASKS``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_ensemble``."""
    parser = command_parser(
        "fedsam_ensemble",
        "Averages the probabilities of several models (recipes, plans, runs) that predicted the same images with --save_probabilities.",
    )
    parser.add_argument(
        "-i", dest="sources", type=Path, nargs="+", required=True, metavar="FOLDER", help="two or more folders that fedsam_predict wrote"
    )
    parser.add_argument("-o", dest="target", type=Path, required=True, metavar="MASKS", help="folder of masks")
    parser.add_argument("--save_probabilities", action="store_true", help="write the mean probabilities, too")
    parser.add_argument(
        "--disable_postprocessing",
        action="store_true",
        help="leave the masks as averaged, also where all folders had the same postprocessing",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> int:
        from fedsam_pipeline.pipeline.ensemble import ensemble

        return ensemble(
            arguments.sources,
            arguments.target,
            save_probabilities=arguments.save_probabilities,
            postprocessing=not arguments.disable_postprocessing,
        )

    return run_command(build_parser(), body, argv)
