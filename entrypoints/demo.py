"""fedsam_demo: everything once, on a made-up cohort, in minutes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, positive_int, run_command
from fedsam_pipeline.model.registry import BASE_MODELS, DEFAULT_BASE_MODEL
from fedsam_pipeline.pipeline.demo import run_demo


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser(
        "fedsam_demo", "Make a cohort, plan, train federated and alone, predict, score; ends with a table and a report."
    )
    parser.add_argument("-o", type=Path, default=Path("demo"), metavar="FOLDER", help="everything is written below it")
    parser.add_argument("-m", default=DEFAULT_BASE_MODEL, metavar="BASE_MODEL", help=f"base model: {', '.join(sorted(BASE_MODELS))}")
    parser.add_argument("--rounds", type=positive_int, default=12, help="rounds of aggregation")
    parser.add_argument("--local_steps", type=positive_int, default=10, help="optimizer steps a site takes in a round")
    parser.add_argument("--size", choices=("demo", "tiny"), default="demo", help="of the cohort; tiny is for trying out the command")
    parser.add_argument("--overwrite", action="store_true", help="start over where a demo with other settings is there")
    parser.add_argument("-device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute")
    return parser


def _body(arguments: argparse.Namespace) -> None:
    run_demo(
        arguments.o,
        rounds=arguments.rounds,
        local_steps=arguments.local_steps,
        base_model=arguments.m,
        size=arguments.size,
        device=arguments.device,
        overwrite=arguments.overwrite,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
