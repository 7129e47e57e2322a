"""fedsam_recipes: what each recipe trains and sends."""

import argparse
import json
from collections.abc import Sequence

from fedsam_pipeline.entrypoints.command import command_parser, positive_int, run_command
from fedsam_pipeline.model.registry import BASE_MODELS, DEFAULT_BASE_MODEL


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser(
        "fedsam_recipes",
        "Trained and federated parameters of each recipe, and bytes one way: 4 a value in fp32, 2 in fp16; in int8 1 a value and 2 "
        "for the scale of a row (of a tall matrix: of a column). Needs no weights and no dataset.",
    )
    parser.add_argument("-m", metavar="MODEL", default=DEFAULT_BASE_MODEL, help=f"base model: {', '.join(BASE_MODELS)}")
    parser.add_argument("--image_size", type=positive_int, metavar="N", default=224, help="side of the encoder's input in pixels")
    parser.add_argument("--num_classes", type=positive_int, metavar="N", default=2, help="foreground classes, without the background")
    parser.add_argument("--rank", type=positive_int, metavar="N", default=8, help="LoRA rank where a recipe says auto")
    parser.add_argument("-r", nargs="+", metavar="RECIPE", help="recipes: names or TOML files (default: all of the package)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a list of JSON objects instead of the table")
    output.add_argument("--tensors", action="store_true", help="list every trained tensor by name below the table")
    return parser


def _body(arguments: argparse.Namespace) -> None:
    from fedsam_pipeline.pipeline.recipes import Setting, manifests, recipe_records, recipe_table, tensor_list
    from fedsam_pipeline.specs.recipe import recipe_names

    setting = Setting(arguments.m, arguments.image_size, arguments.num_classes, arguments.rank)
    found = manifests(arguments.r or recipe_names(), setting)
    if arguments.json:
        print(json.dumps(recipe_records(found), indent=2))
        return
    print(recipe_table(found, setting))
    for manifest in found if arguments.tensors else ():
        print(f"\n{tensor_list(manifest)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
