"""fedsam_demo_deployment: a federation of real processes on this machine, in minutes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, positive_float, positive_int, run_command
from fedsam_pipeline.model.registry import BASE_MODELS, DEFAULT_BASE_MODEL


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser(
        "fedsam_demo_deployment",
        "One server and three hospitals on this machine, with TLS, keys and a signed app; five rounds, one site is killed and comes back. "
        "Ends with a table and a report.",
    )
    parser.add_argument("-o", type=Path, default=Path("demo_deployment"), metavar="FOLDER", help="everything is written below it")
    parser.add_argument("-m", default=DEFAULT_BASE_MODEL, metavar="BASE_MODEL", help=f"base model: {', '.join(sorted(BASE_MODELS))}")
    parser.add_argument("--local_steps", type=positive_int, default=5, help="optimizer steps a site takes in a round")
    parser.add_argument("--size", choices=("demo", "tiny"), default="demo", help="of the cohort; tiny is for trying out the command")
    parser.add_argument(
        "--round_timeout",
        type=positive_float,
        default=120.0,
        metavar="SECONDS",
        help="how long the killed site is waited for; a round is shorter",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the folder first where it is there")
    return parser


def _body(arguments: argparse.Namespace) -> None:
    from fedsam_pipeline.pipeline.demo_deployment import run_demo_deployment

    run_demo_deployment(
        arguments.o,
        base_model=arguments.m,
        local_steps=arguments.local_steps,
        size=arguments.size,
        round_timeout=arguments.round_timeout,
        overwrite=arguments.overwrite,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
