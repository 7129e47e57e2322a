"""``fedsam_convert_dataset msd IN``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_convert_dataset``."""
    parser = command_parser("fedsam_convert_dataset", "Make a dataset of another layout into ours.")
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    msd = layouts.add_parser(
        "msd",
        help="a task of the Medical Segmentation Decathlon",
        description="Make a task of the Medical Segmentation Decathlon (TaskXX_Name) into DatasetXXX_Name.",
    )
    msd.add_argument("source", type=Path, metavar="IN", help="the task's folder, unpacked")
    msd.add_argument("-d", dest="dataset", type=int, metavar="N", help="number of the new dataset (default: the task's)")
    msd.add_argument("-o", dest="output", type=Path, metavar="FOLDER", help="raw folder (default: $fedsam_raw, or fedsam_data/raw)")
    msd.add_argument("--sites", type=Path, metavar="FILE", help='which site owns which case, JSON: {"site_a": ["CASE", ...], ...}')
    msd.add_argument("--overwrite", action="store_true", help="replace a dataset of the same number and name")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.dataset.convert_msd import convert_msd
        from fedsam_pipeline.paths import data_folders, dataset_id

        folders = data_folders()
        if arguments.output is None and (notice := folders.notice()):
            print(notice)
        dataset = convert_msd(
            arguments.source,
            arguments.output or folders.raw,
            number=arguments.dataset,
            sites_file=arguments.sites,
            overwrite=arguments.overwrite,
            progress=True,
        )
        print(f"{dataset.name}: {dataset.folder}")
        print(f"{len(dataset.cases)} labelled and {len(dataset.test_cases)} test cases at {len(dataset.sites)} site(s)")
        print(f"next: fedsam_plan_and_preprocess -d {dataset_id(dataset.name)}")

    return run_command(build_parser(), body, argv)
