"""``fedsam_evaluate GT PRED``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, positive_float, run_command


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_evaluate``."""
    parser = command_parser(
        "fedsam_evaluate",
        "Scores of predicted masks per case, class and site, overlap, surface, volume and lesions; writes summary.json and CSV.",
    )
    parser.add_argument("reference", type=Path, metavar="GT", help="raw dataset folder, or folder of reference masks")
    parser.add_argument("prediction", type=Path, metavar="PRED", help="folder of predicted masks")
    parser.add_argument("--dataset_json", type=Path, help="label names and sites (default: dataset.json in GT or beside it)")
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="summary to write (default: PRED/summary.json)")
    parser.add_argument("--nsd_tolerance", type=_lengths, metavar="MM,MM", help="tolerances of NSD, each a metric of its own (default: 2)")
    parser.add_argument("--lesion_iou", type=_share, metavar="IOU", help="two components are one lesion from this IoU on (default: 0.1)")
    parser.add_argument("--fed_kits", action="store_true", help="FLamby's composite for Fed-KiTS19 too; labels must be kidney 1, tumor 2")
    parser.add_argument("--chill", action="store_true", help="score only the cases that were predicted")
    return parser


def _lengths(text: str) -> tuple[float, ...]:
    """Such as ``1,2.5``: each once, sorted."""
    return tuple(sorted({positive_float(part) for part in text.split(",")}))


def _share(text: str) -> float:
    value = positive_float(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.evaluation.case_metrics import DEFAULT_TOLERANCES, MetricSettings
        from fedsam_pipeline.evaluation.lesions import DEFAULT_IOU
        from fedsam_pipeline.evaluation.score_table import format_scores
        from fedsam_pipeline.evaluation.summary import format_table
        from fedsam_pipeline.pipeline.evaluate import csv_paths, evaluate

        settings = MetricSettings(
            nsd_tolerances=arguments.nsd_tolerance or DEFAULT_TOLERANCES,
            lesion_iou=DEFAULT_IOU if arguments.lesion_iou is None else arguments.lesion_iou,
        )
        summary, path = evaluate(
            arguments.reference,
            arguments.prediction,
            dataset_json=arguments.dataset_json,
            output=arguments.output,
            allow_missing=arguments.chill,
            settings=settings,
            composite=arguments.fed_kits,
        )
        print(format_table(summary))
        print()
        print(format_scores(summary))
        print()
        for written in (*csv_paths(path), path):
            print(f"written: {written}")

    return run_command(build_parser(), body, argv)
