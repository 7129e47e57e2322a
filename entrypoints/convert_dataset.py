"""``fedsam_convert_dataset LAYOUT IN``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsam_pipeline.dataset import convert_layouts
from fedsam_pipeline.entrypoints.command import command_parser, positive_int, run_command

if TYPE_CHECKING:
    from fedsam_pipeline.dataset.raw import RawDataset


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_convert_dataset``."""
    parser = command_parser("fedsam_convert_dataset", "Make a dataset of another layout into ours. LAYOUT -h shows what is expected.")
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")

    def add(name: str, help_text: str, expected: str, *, number_default: str | None = None) -> argparse.ArgumentParser:
        layout = layouts.add_parser(
            name,
            help=help_text,
            description=f"{help_text[0].upper()}{help_text[1:]}.\n\nexpected in IN:\n\n{expected}",
            epilog="docs/convert.md says more.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        layout.add_argument("source", type=Path, metavar="IN", help="the unpacked download")
        wanted = "number of the new dataset" + (f" (default: {number_default})" if number_default else "")
        layout.add_argument("-d", dest="dataset", type=int, metavar="N", required=number_default is None, help=wanted)
        layout.add_argument("-o", dest="output", type=Path, metavar="FOLDER", help="raw folder (default: $fedsam_raw, or fedsam_data/raw)")
        layout.add_argument("--overwrite", action="store_true", help="replace a dataset of the same number and name")
        return layout

    msd = add("msd", "a task of the Medical Segmentation Decathlon", convert_layouts.MSD, number_default="the task's")
    msd.add_argument("--sites", type=Path, metavar="FILE", help='which site owns which case, JSON: {"site_a": ["CASE", ...], ...}')
    add("prostate", "prostate MRI of six sites (Liu et al.), zones merged into one label", convert_layouts.PROSTATE)
    kits19 = add("kits19", "kidney and kidney tumor in CT, KiTS19 with the hospitals of Fed-KiTS19", convert_layouts.KITS19)
    kits19.add_argument("--sites", type=Path, metavar="CSV", required=True, help=convert_layouts.KITS19_TABLE)
    minimum = convert_layouts.KITS19_MIN_CASES
    text = f"leave hospitals with fewer labelled cases out (default: {minimum}, as FLamby)"
    kits19.add_argument("--min_cases", type=positive_int, default=minimum, metavar="N", help=text)
    ixi = add("ixi", "brain in T1 MRI, IXI Tiny with the three hospitals of Fed-IXI", convert_layouts.IXI)
    ixi.add_argument(
        "--split",
        type=Path,
        metavar="CSV",
        help=f"test patients go to imagesTs and labelsTs: {convert_layouts.IXI_TABLE} (default: no test cases)",
    )
    fets = add("fets", "glioma in four MRI sequences, training data of FeTS 2022", convert_layouts.FETS)
    fets.add_argument(
        "--sites",
        type=Path,
        metavar="CSV",
        help="columns Partition_ID, Subject_ID, such as partitioning_2.csv (default: IN's partitioning_1.csv)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.paths import data_folders, dataset_id

        folders = data_folders()
        if arguments.output is None and (notice := folders.notice()):
            print(notice)
        dataset = _convert(arguments, arguments.output or folders.raw)
        print(f"{dataset.name}: {dataset.folder}")
        print(f"{len(dataset.cases)} labelled and {len(dataset.test_cases)} test cases at {len(dataset.sites)} site(s)")
        print(f"next: fedsam_plan_and_preprocess -d {dataset_id(dataset.name)}")

    return run_command(build_parser(), body, argv)


def _convert(arguments: argparse.Namespace, root: Path) -> "RawDataset":
    from fedsam_pipeline.dataset.convert_fets import convert_fets
    from fedsam_pipeline.dataset.convert_ixi import convert_ixi
    from fedsam_pipeline.dataset.convert_kits19 import convert_kits19
    from fedsam_pipeline.dataset.convert_msd import convert_msd
    from fedsam_pipeline.dataset.convert_prostate import convert_prostate

    source, number, overwrite = arguments.source, arguments.dataset, arguments.overwrite
    if arguments.layout == "msd":
        return convert_msd(source, root, number=number, sites_file=arguments.sites, overwrite=overwrite, progress=True)
    if arguments.layout == "prostate":
        return convert_prostate(source, root, number=number, overwrite=overwrite, progress=True)
    if arguments.layout == "kits19":
        sites, minimum = arguments.sites, arguments.min_cases
        return convert_kits19(source, root, number=number, sites_file=sites, min_cases=minimum, overwrite=overwrite, progress=True)
    if arguments.layout == "ixi":
        return convert_ixi(source, root, number=number, split_file=arguments.split, overwrite=overwrite, progress=True)
    return convert_fets(source, root, number=number, sites_file=arguments.sites, overwrite=overwrite, progress=True)
