"""fedsam_plan_and_preprocess: fingerprint, plan with reasons, preprocessed store."""

import argparse
from collections.abc import Sequence

from fedsam_pipeline.entrypoints.command import command_parser, positive_int, run_command
from fedsam_pipeline.model.registry import BASE_MODELS, DEFAULT_BASE_MODEL
from fedsam_pipeline.paths import choose_dataset, data_folders
from fedsam_pipeline.pipeline.plan_and_preprocess import MAX_PROCESSES, PlanRequest, plan_and_preprocess


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser(
        "fedsam_plan_and_preprocess", "Measure every site's images, plan how a base model should see them, and preprocess them."
    )
    parser.add_argument("-d", metavar="DATASET", help="number or name of the raw dataset; not needed when there is only one")
    parser.add_argument("-m", metavar="BASE_MODEL", default=DEFAULT_BASE_MODEL, help=f"base model: {', '.join(sorted(BASE_MODELS))}")
    parser.add_argument("-p", metavar="PLANS", default="plans", help="name of the plans, written to PLANS.json")
    parser.add_argument(
        "-np",
        type=positive_int,
        metavar="PROCESSES",
        help=f"worker processes, each with one case in memory (default: one a core, at most {MAX_PROCESSES}, fewer for small datasets)",
    )
    parser.add_argument(
        "--verify_dataset_integrity", action="store_true", help="accepted for nnU-Net's users: every case is always verified"
    )
    parser.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    return parser


def _body(arguments: argparse.Namespace) -> int:
    folders = data_folders()
    if notice := folders.notice():
        print(notice)
    raw = choose_dataset(
        folders.raw, arguments.d, stage="raw", fix="make the demo dataset with fedsam_make_demo_dataset, or convert yours: docs/formats.md"
    )
    print(f"dataset {raw.name}")
    request = PlanRequest(arguments.m, arguments.p, arguments.np, preprocess=not arguments.no_pp)
    return plan_and_preprocess(raw, folders.preprocessed, request)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
