"""``fedsam_make_demo_dataset``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, not_negative_int, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_make_demo_dataset``."""
    parser = command_parser("fedsam_make_demo_dataset", "Make a procedural multi-site cohort to try everything with.")
    parser.add_argument("-d", dest="dataset", type=int, default=1, metavar="N", help="number of the new dataset")
    parser.add_argument("-o", dest="output", type=Path, metavar="FOLDER", help="raw folder (default: $fedsam_raw, or fedsam_data/raw)")
    parser.add_argument("--size", choices=("demo", "tiny"), default="demo", help="demo: four sites; tiny: three sites, for tests")
    parser.add_argument("--seed", type=not_negative_int, default=0, help="another seed makes other patients")
    parser.add_argument("--overwrite", action="store_true", help="replace another dataset of this name")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.dataset.staging import new_dataset_folder
        from fedsam_pipeline.dataset.synthetic import make_demo_dataset
        from fedsam_pipeline.paths import data_folders

        folders = data_folders()
        if arguments.output is None and (notice := folders.notice()):
            print(notice)
        folder = new_dataset_folder(arguments.output or folders.raw, arguments.dataset, "Demo")
        dataset = make_demo_dataset(folder, seed=arguments.seed, size=arguments.size, overwrite=arguments.overwrite, progress=True)
        sites = ", ".join(f"{site} {len(cases)}+{len(dataset.test_sites[site])}" for site, cases in dataset.sites.items())
        print(f"{dataset.name}: {folder}")
        print(f"cases (labelled+test): {sites}")
        print(f"next: fedsam_plan_and_preprocess -d {arguments.dataset}")

    return run_command(build_parser(), body, argv)
