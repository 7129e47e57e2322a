"""``fedsam_evaluate GT PRED``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_evaluate``."""
    parser = command_parser("fedsam_evaluate", "Dice and HD95 of predicted masks per case, class and site; writes summary.json.")
    parser.add_argument("reference", type=Path, metavar="GT", help="raw dataset folder, or folder of reference masks")
    parser.add_argument("prediction", type=Path, metavar="PRED", help="folder of predicted masks")
    parser.add_argument("--dataset_json", type=Path, help="label names and sites (default: dataset.json in GT or beside it)")
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="summary to write (default: PRED/summary.json)")
    parser.add_argument("--chill", action="store_true", help="score only the cases that were predicted")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.evaluation.summary import format_table
        from fedsam_pipeline.pipeline.evaluate import evaluate

        summary, path = evaluate(
            arguments.reference,
            arguments.prediction,
            dataset_json=arguments.dataset_json,
            output=arguments.output,
            allow_missing=arguments.chill,
        )
        print(format_table(summary))
        print(f"written: {path}")

    return run_command(build_parser(), body, argv)
