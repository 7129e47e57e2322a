"""``fedsam_report``: a trained run as one HTML page."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, positive_int, refuse_unused, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_report``."""
    parser = command_parser(
        "fedsam_report",
        "Writes one HTML page about a run: Dice, learning curves, bytes, worst and median cases, privacy, the plan with its reasons. "
        "It needs no network and no other file.",
    )
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name (default: the only trained one)")
    parser.add_argument(
        "-m", dest="model", type=Path, metavar="FOLDER", help="run or fold folder, also one in training (default: that of -d)"
    )
    parser.add_argument("-o", dest="output", type=Path, metavar="HTML", help="the page (default: report.html in the fold folder)")
    parser.add_argument("--cases", type=positive_int, metavar="N", help="draw the N worst cases and N around the median (default: 2)")
    parser.add_argument("--no_cases", action="store_true", help="nothing of single cases: no pictures, no names, no box plots")
    parser.add_argument("-device", default="auto", choices=("auto", "cpu", "cuda"), help="where to predict the cases that are drawn")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.pipeline.report import report

        if arguments.no_cases:
            refuse_unused({"--cases": arguments.cases is not None}, "--cases without --no_cases")
        path = report(
            dataset=arguments.dataset,
            model=arguments.model,
            output=arguments.output,
            cases=arguments.cases or 2,
            show_cases=not arguments.no_cases,
            device=arguments.device,
        )
        print(f"{path} ({path.stat().st_size:,} bytes)")

    return run_command(build_parser(), body, argv)
