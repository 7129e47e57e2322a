"""``fedsam_export_model``: a trained model as one file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_export_model``."""
    parser = command_parser(
        "fedsam_export_model",
        "Packs a trained model into one zip: adapters, plan, recipe, model card, checksums. No case name, no path, no base weights.",
    )
    parser.add_argument("-o", dest="target", type=Path, metavar="ZIP", help="the bundle (default: named after the run, in this folder)")
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name (default: the only trained one)")
    parser.add_argument("-m", dest="model", type=Path, metavar="FOLDER", help="trained run or fold folder (default: the one of -d)")
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="folds to pack (default: all trained ones)")
    parser.add_argument("--licence", metavar="TEXT", help="licence of the trained weights, for the model card, such as CC-BY-4.0")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle where it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.pipeline.export_model import export_model

        path = export_model(
            arguments.target,
            dataset=arguments.dataset,
            model=arguments.model,
            folds=arguments.folds,
            licence=arguments.licence,
            overwrite=arguments.overwrite,
        )
        print(f"{path} ({path.stat().st_size:,} bytes)")

    return run_command(build_parser(), body, argv)
