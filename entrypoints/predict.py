"""``fedsam_predict -i IMAGES -o MASKS``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_predict``."""
    parser = command_parser(
        "fedsam_predict", "Segments images with a trained model; masks have their image's geometry and format (NIfTI for DICOM)."
    )
    parser.add_argument(
        "-i",
        dest="source",
        type=Path,
        required=True,
        metavar="IMAGES",
        help="folder of images, or one image; a folder of DICOM slices is one image",
    )
    parser.add_argument("-o", dest="target", type=Path, required=True, metavar="MASKS", help="folder of masks, or the one mask")
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name (default: the only trained one)")
    parser.add_argument("-m", dest="model", type=Path, metavar="FOLDER", help="trained run or fold folder (default: the one of -d)")
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="folds to average (default: all trained ones)")
    parser.add_argument("-device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument("--disable_tta", action="store_true", help="do not average over mirrored images: faster")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> int:
        from fedsam_pipeline.pipeline.predict import predict

        return predict(
            arguments.source,
            arguments.target,
            dataset=arguments.dataset,
            model=arguments.model,
            folds=arguments.folds,
            device=arguments.device,
            test_time_augmentation=not arguments.disable_tta,
        )

    return run_command(build_parser(), body, argv)
