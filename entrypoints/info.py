"""``fedsam_info``: what there is on this machine."""

import argparse
import json
from collections.abc import Sequence

from fedsam_pipeline.entrypoints.command import command_parser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_info``."""
    parser = command_parser(
        "fedsam_info", "Versions, devices, base weights, folders, datasets with their plans, trained models. Writes nothing."
    )
    parser.add_argument("--verify", action="store_true", help="also hash the base weights and check every trained fold: reads them in full")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the screen")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.pipeline.info import collect_info
        from fedsam_pipeline.pipeline.info_text import info_text

        info = collect_info(verify=arguments.verify)
        print(json.dumps(info, indent=1) if arguments.json else info_text(info))

    return run_command(build_parser(), body, argv)
