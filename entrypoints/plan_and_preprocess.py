"""fedsam_plan_and_preprocess: fingerprint, plan with reasons, preprocessed store."""

import argparse
from collections.abc import Sequence

from fedsam_pipeline.entrypoints.command import command_parser, not_negative_int, positive_float, positive_int, refuse_unused, run_command
from fedsam_pipeline.model.registry import BASE_MODELS, DEFAULT_BASE_MODEL
from fedsam_pipeline.paths import choose_dataset, data_folders
from fedsam_pipeline.pipeline.integrity import fix_into_copy
from fedsam_pipeline.pipeline.plan_and_preprocess import DEFAULT_PLANS_NAME, PlanRequest, plan_and_preprocess
from fedsam_pipeline.planning.privacy import DEFAULT_FLOOR
from fedsam_pipeline.preprocessing.budget import MAX_PROCESSES


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser(
        "fedsam_plan_and_preprocess", "Measure every site's images, plan how a base model should see them, and preprocess them."
    )
    parser.add_argument("-d", metavar="DATASET", help="number or name of the raw dataset; not needed when there is only one")
    parser.add_argument("-m", metavar="BASE_MODEL", default=DEFAULT_BASE_MODEL, help=f"base model: {', '.join(sorted(BASE_MODELS))}")
    parser.add_argument(
        "-p",
        "-overwrite_plans_name",  # nnU-Net's word for it
        metavar="PLANS",
        default=DEFAULT_PLANS_NAME,
        help="name of the plans, written to PLANS.json",
    )
    parser.add_argument(
        "-overwrite_target_spacing",
        nargs=3,
        type=positive_float,
        metavar=("Z", "Y", "X"),
        help="target spacing in mm in place of the planned one, along superior, posterior and left; the plan needs another name than "
        f"{DEFAULT_PLANS_NAME}",
    )
    parser.add_argument(
        "-np",
        type=positive_int,
        metavar="PROCESSES",
        help=f"processes, one case each (default: one a core, at most {MAX_PROCESSES}, fewer where memory is short or data are few)",
    )
    parser.add_argument(
        "--verify_dataset_integrity",
        action="store_true",
        help="make all integrity checks first, imagesTs and duplicates included; without it those that measuring makes anyway",
    )
    parser.add_argument("--fix", action="store_true", help="write a copy of the raw dataset with all safe fixes, verify that, and end")
    parser.add_argument("-o", type=not_negative_int, metavar="N", help="number of the copy that --fix writes (default: the next free one)")
    parser.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="preprocess all cases again: delete the plan's store, and stores that no plan needs any more, before preprocessing",
    )
    parser.add_argument(
        "--privacy_floor",
        type=positive_int,
        metavar="N",
        help=f"every number that leaves a site stands for at least N patients; a site with fewer releases none and uses the others' plan "
        f"(default: {DEFAULT_FLOOR}, but none where there is one site: nothing leaves it). 1 for data that are all your own",
    )
    parser.add_argument("--dry_run", action="store_true", help="write and print exactly what would leave each site, then stop")
    return parser


def _check_flags(arguments: argparse.Namespace) -> None:
    """Refuses flags that ``--fix``, or its absence, leaves without a meaning."""
    if not arguments.fix:
        refuse_unused({"-o": arguments.o is not None}, "-o together with --fix: it numbers the copy")
        return
    ignored = {
        "-p": arguments.p != DEFAULT_PLANS_NAME,
        "-overwrite_target_spacing": arguments.overwrite_target_spacing is not None,
        "--no_pp": arguments.no_pp,
        "--clean": arguments.clean,
        "--privacy_floor": arguments.privacy_floor is not None,
        "--dry_run": arguments.dry_run,
    }
    refuse_unused(ignored, "--fix without them: it writes a mended copy, and neither plans nor preprocesses")


def _body(arguments: argparse.Namespace) -> int:
    _check_flags(arguments)
    folders = data_folders()
    if notice := folders.notice():
        print(notice)
    raw = choose_dataset(
        folders.raw, arguments.d, stage="raw", fix="make the demo dataset with fedsam_make_demo_dataset, or convert yours: docs/formats.md"
    )
    print(f"dataset {raw.name}")
    if arguments.fix:
        return fix_into_copy(raw, folders.preprocessed, number=arguments.o, num_processes=arguments.np)
    request = PlanRequest(
        arguments.m,
        arguments.p,
        arguments.np,
        preprocess=not arguments.no_pp,
        privacy_floor=arguments.privacy_floor,
        dry_run=arguments.dry_run,
        verify=arguments.verify_dataset_integrity,
        target_spacing=None if arguments.overwrite_target_spacing is None else tuple(arguments.overwrite_target_spacing),
        clean=arguments.clean,
    )
    return plan_and_preprocess(raw, folders.preprocessed, request)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
