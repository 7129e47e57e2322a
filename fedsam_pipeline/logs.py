"""The log file that every command leaves beside its output."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsam_pipeline.errors import FedsamError


def printable(value: object, length: int | None = None) -> str:
    """A value that another machine chose, for a log or a terminal: what is not printable (line ends, escapes) as Python's ``ascii`` has it.

    Args:
        value: as ``str`` has it.
        length: the letters of it that are shown; ``None``: all.
    """
    text = str(value)[:length]
    return text if text.isprintable() else ascii(text)


@contextmanager
def log_file(folder: Path, command: str, *, dated: bool = True) -> Iterator[Path]:
    """Writes all log records of this process to ``folder/COMMAND_date.log`` while the block runs.

    Args:
        folder: made if it is missing.
        command: first part of the file's name.
        dated: ``False`` appends to ``folder/COMMAND.log`` instead.

    Raises:
        FedsamError: the folder cannot be written to.
    """
    path = Path(folder) / (f"{command}_{time.strftime('%Y%m%d_%H%M%S')}.log" if dated else f"{command}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise FedsamError(
            "cannot write a log file",
            path=path,
            found=str(error),
            expected="a folder this user may write to",
            fix="choose another output folder, or change its permissions",
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger(__name__).debug("command line: %s", " ".join(sys.argv))
    try:
        yield path
    except BaseException:
        logging.getLogger(__name__).debug("%s ended here", command, exc_info=True)
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
