"""``fedsam_doctor``: is this machine fit for the federation?"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_doctor``."""
    parser = command_parser(
        "fedsam_doctor",
        "Versions, disk, data, base weights and GPU of this machine; with --kit also keys, certificates, the server's answer and the "
        "clock. Every finding with its fix. Writes nothing. Exit code 0 without a problem, else 2.",
    )
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="raw dataset to check: number or name (default: the only one)")
    parser.add_argument("--kit", type=Path, metavar="FOLDER", help="the server's or a site's folder of fedsam_site_kit")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> int:
        from fedsam_pipeline.pipeline.doctor import examine, exit_code, report, report_text

        findings = examine(arguments.dataset, arguments.kit)
        print(json.dumps(report(findings), indent=1) if arguments.json else report_text(findings))
        return exit_code(findings)

    return run_command(build_parser(), body, argv)
