"""fedsam_plot_overlays: pictures of images with their masks, for a person to look at."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, not_negative_int, positive_int, refuse_unused, run_command
from fedsam_pipeline.paths import choose_dataset, data_folders


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser(
        "fedsam_plot_overlays", "Draws every labelled case with its mask, one PNG each: slices through the largest foreground area."
    )
    parser.add_argument("-d", metavar="DATASET", help="number or name of the dataset; not needed when there is only one")
    parser.add_argument(
        "-o",
        type=Path,
        metavar="FOLDER",
        help="where the pictures go (default: overlays/raw or overlays/PLANS in the preprocessed dataset)",
    )
    parser.add_argument("--preprocessed", action="store_true", help="draw the preprocessed store instead of the raw dataset")
    parser.add_argument("-p", metavar="PLANS", help="with --preprocessed, name of the plans (default: plans)")
    parser.add_argument("-n", type=positive_int, metavar="N", help="draw N cases, evenly spread over the sorted names (default: all)")
    parser.add_argument("--channel", type=not_negative_int, metavar="N", default=0, help="number of the channel to draw")
    return parser


def _body(arguments: argparse.Namespace) -> int:
    from fedsam_pipeline.pipeline.plans_file import choose_planned
    from fedsam_pipeline.pipeline.plot_overlays import OVERLAY_FOLDER, plot_preprocessed, plot_raw

    if not arguments.preprocessed:
        refuse_unused({"-p": arguments.p is not None}, "-p together with --preprocessed: the raw dataset has no plan")
    folders = data_folders()
    if notice := folders.notice():
        print(notice)
    if arguments.preprocessed:
        plans_name = arguments.p or "plans"
        folder = choose_planned(folders.preprocessed, arguments.d, plans_name)
        print(f"dataset {folder.name}")
        output = arguments.o or folder / OVERLAY_FOLDER / plans_name
        return plot_preprocessed(folder, plans_name, output, number=arguments.n, channel=arguments.channel)
    raw = choose_dataset(folders.raw, arguments.d, stage="raw", fix="make the demo dataset with fedsam_make_demo_dataset, or check -d")
    print(f"dataset {raw.name}")
    output = arguments.o or folders.preprocessed / raw.name / OVERLAY_FOLDER / "raw"
    return plot_raw(raw, output, number=arguments.n, channel=arguments.channel)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
