"""``fedsam_audit``: which messages came to a site and left it, and whether the file that says so is whole."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, positive_int, run_command
from fedsam_pipeline.errors import EXIT_DONE, EXIT_USER_INPUT


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_audit``."""
    parser = command_parser("fedsam_audit", "The audit trail of a site: every message in and out. Reads; writes nothing.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="verify|show")
    place = "a trail (audit.jsonl), a site's folder, or a run's folder with those of several sites"
    verify = actions.add_parser("verify", help="check every line: exit code 0 intact, 2 broken")
    verify.add_argument("places", type=Path, nargs="+", metavar="FOLDER", help=f"{place}; several, where a site has begun a new trail")
    verify.add_argument(
        "--heads",
        type=Path,
        metavar="FILE",
        help="the server's audit_heads.jsonl: finds lines cut off at the end, and trails that are gone (default: the one in FOLDER)",
    )
    show = actions.add_parser("show", help="print the messages as a table")
    show.add_argument("place", type=Path, metavar="FOLDER", help=place)
    show.add_argument("--last", type=positive_int, metavar="N", help="only the last N of each site (default: all)")
    show.add_argument("--json", action="store_true", help="print a list of JSON objects, with tensor names and whole hashes")
    return parser


def _body(arguments: argparse.Namespace) -> int:
    from fedsam_pipeline.pipeline.audit import read_lines, trail_table, verify_trails

    if arguments.action == "verify":
        trails, missing = verify_trails(arguments.places, arguments.heads)
        print("\n".join(map(str, [*trails, *missing])))
        return EXIT_USER_INPUT if missing or any(trail.fault is not None for trail in trails) else EXIT_DONE
    lines = read_lines(arguments.place, arguments.last)
    print(json.dumps([line.to_dict() for line in lines], indent=1) if arguments.json else trail_table(lines))
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
