"""What every command shares: parser style, log levels, exit codes."""

import argparse
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from fedsam_pipeline.errors import EXIT_DONE, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USER_INPUT, FedsamError


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds defaults to the help, but not where there is nothing to say."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def command_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser whose ``-h`` shows defaults, with the flags that every command has."""
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=_HelpFormatter)
    parser.add_argument("--verbose", action="store_true", help="print debug messages")
    return parser


def positive_int(text: str) -> int:
    """An argparse type: a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def not_negative_int(text: str) -> int:
    """An argparse type: a whole number, zero or above."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below zero")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a finite number above zero."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above zero")
    return value


def share(text: str) -> float:
    """An argparse type: a number above zero and at most one."""
    value = positive_float(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is above one")
    return value


def setting(text: str) -> tuple[str, float]:
    """An argparse type: ``NAME=NUMBER``."""
    refused = argparse.ArgumentTypeError(f"{text} is not NAME=NUMBER")
    name, _, value = text.partition("=")
    if not name:
        raise refused
    try:
        return name, float(value)
    except ValueError as error:
        raise refused from error


def refuse_unused(given: Mapping[str, bool], expected: str) -> None:
    """Refuses flags that the command would have to ignore.

    Args:
        given: flag to whether the user gave it.
        expected: when these flags mean something.

    Raises:
        FedsamError: some were given; it names them all.
    """
    if unused := ", ".join(flag for flag, present in given.items() if present):
        raise FedsamError("these flags would be ignored", found=unused, expected=expected, fix=f"leave {unused} out")


def run_command(
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None,
) -> int:
    """Parses ``argv``, calls ``body`` and turns its outcome into an exit code.

    0 done, 1 some cases failed (``body`` returns 1), 2 the user's input, 3 internal, 130 interrupted.
    """
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    logging.getLogger("fedsam_pipeline").setLevel(logging.DEBUG)  # for the log files; the terminal shows what its level lets through
    for noisy in ("matplotlib", "PIL", "urllib3", "fsspec", "numexpr", "highdicom", "httpx", "httpcore", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return body(arguments) or EXIT_DONE
    except FedsamError as error:
        logging.getLogger("fedsam_pipeline").debug("raised here", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: not an error of ours
        return EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
        print("internal error: please report the lines above", file=sys.stderr)
        return EXIT_INTERNAL
