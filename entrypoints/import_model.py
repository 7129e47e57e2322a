"""``fedsam_import_model BUNDLE.zip``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_import_model``."""
    parser = command_parser("fedsam_import_model", "Checks a bundle of fedsam_export_model and installs it, ready for fedsam_predict.")
    parser.add_argument("source", type=Path, metavar="ZIP", help="the bundle")
    parser.add_argument("-o", dest="target", type=Path, metavar="FOLDER", help="new folder (default: its place below $fedsam_results)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.pipeline.import_model import import_model

        imported = import_model(arguments.source, target=arguments.target)
        print(f"{imported.folder}: fold {', '.join(imported.index.folds)}, made with fedsam-pipeline {imported.index.made_with}")
        print(f"read {imported.folder / 'MODEL_CARD.md'}")
        if imported.needs is not None:
            print(f"its base weights are not in the cache yet: {imported.needs}")
        print(f"then: fedsam_predict -i IMAGES -o MASKS -m {imported.folder}")

    return run_command(build_parser(), body, argv)
