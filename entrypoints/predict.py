"""``fedsam_predict -i IMAGES -o MASKS``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import (
    command_parser,
    not_negative_int,
    positive_float,
    positive_int,
    refuse_unused,
    run_command,
    share,
)


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_predict``."""
    parser = command_parser(
        "fedsam_predict", "Segments images with a trained model; masks have their image's geometry and format (NIfTI or SEG for DICOM)."
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
    parser.add_argument("--compile", action="store_true", help="compile the image encoder: the first windows are slow; for many images")
    parser.add_argument("--disable_tta", action="store_true", help="do not average over mirrored images: faster")
    parser.add_argument(
        "--mirror_axes",
        nargs="+",
        type=int,
        choices=(0, 1, 2),
        metavar="AXIS",
        help="average over images mirrored along these axes: 0 slices, 1 height, 2 width (default: as in training)",
    )
    parser.add_argument(
        "-step_size",
        type=share,
        metavar="SHARE",
        help="how far windows are apart, as a share of their length: larger is faster (default: as planned)",
    )
    parser.add_argument(
        "--save_probabilities", action="store_true", help="write CASE_probabilities.b2nd beside each mask, for fedsam_ensemble"
    )
    parser.add_argument(
        "--dicom_seg",
        action="store_true",
        help="write DICOM Segmentations, CASE.dcm, for DICOM series (default: NIfTI, or as -o ends); needs fedsam-pipeline[dicom]",
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON of boxes or points in mm, for a model trained with prompts (docs/formats.md)"
    )
    parser.add_argument(
        "--self_prompt",
        action=argparse.BooleanOptionalAction,
        help="predict twice: the first mask prompts the second; twice the time (default: as planned)",
    )
    parser.add_argument(
        "--disable_postprocessing", action="store_true", help="leave the masks as predicted, whatever was chosen for the model"
    )
    parser.add_argument("--continue_prediction", action="store_true", help="leave out cases whose masks are there")
    parser.add_argument("-num_parts", type=positive_int, default=1, metavar="N", help="share the cases between N processes")
    parser.add_argument("-part_id", type=not_negative_int, default=0, metavar="N", help="which of the parts to predict, from 0")
    parser.add_argument(
        "--max_memory", type=positive_float, metavar="GB", help="main memory to stay within, at the cost of time (default: no limit)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> int:
        if arguments.disable_tta:
            refuse_unused({"--mirror_axes": arguments.mirror_axes is not None}, "test-time augmentation, without --disable_tta")
        from fedsam_pipeline.pipeline.predict import predict

        return predict(
            arguments.source,
            arguments.target,
            dataset=arguments.dataset,
            model=arguments.model,
            folds=arguments.folds,
            device=arguments.device,
            compiled=arguments.compile,
            test_time_augmentation=not arguments.disable_tta,
            mirror_axes=arguments.mirror_axes,
            step_size=arguments.step_size,
            save_probabilities=arguments.save_probabilities,
            continue_prediction=arguments.continue_prediction,
            num_parts=arguments.num_parts,
            part_id=arguments.part_id,
            dicom_seg=arguments.dicom_seg,
            postprocessing=not arguments.disable_postprocessing,
            max_memory=None if arguments.max_memory is None else int(arguments.max_memory * 1e9),
            prompts=arguments.prompts,
            self_prompt=arguments.self_prompt,
        )

    return run_command(build_parser(), body, argv)
