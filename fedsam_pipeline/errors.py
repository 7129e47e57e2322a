"""The one error a user can meet, and the exit codes of every command."""

from collections.abc import Sequence
from pathlib import Path

EXIT_DONE = 0
EXIT_SOME_FAILED = 1
EXIT_USER_INPUT = 2
EXIT_INTERNAL = 3
EXIT_INTERRUPTED = 130


class FedsamError(Exception):
    """Something the user gave is wrong, and the user can mend it.

    The message names the file, what was found there, what was expected, and the edit or command that mends it. Commands print it without a
    traceback and exit with code 2.

    Args:
        what: one sentence, what is wrong.
        path: the file or folder it is wrong in.
        found: what stands there.
        expected: what should stand there.
        fix: the edit or the command that mends it.
    """

    def __init__(
        self,
        what: str,
        *,
        path: Path | str | None = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.path = None if path is None else str(path)
        self.found = found
        self.expected = expected
        self.fix = fix
        super().__init__(self._message())

    def _message(self) -> str:
        lines = [self.what]
        for word, value in (
            ("where", self.path),
            ("found", self.found),
            ("expected", self.expected),
            ("fix", self.fix),
        ):
            if value is not None:
                lines.append(f"  {word + ':':<10}{value}")
        return "\n".join(lines)

    def __reduce__(
        self,
    ) -> tuple[object, ...]:  # keyword-only arguments survive the trip between processes
        return _rebuild, (self.what, self.path, self.found, self.expected, self.fix)


def fault_list(faults: Sequence[str], shown: int | None = None) -> str:
    """Several faults as ``found`` of one error: a single one as it is, else their number and a line each.

    Args:
        faults: at least one.
        shown: of more than these only the number is told; ``None`` shows all.
    """
    if len(faults) == 1:
        return faults[0]
    hidden = 0 if shown is None else max(0, len(faults) - shown)
    more = [f"and {hidden} more"] if hidden else []
    return "\n    ".join([f"{len(faults)} faults", *faults[: len(faults) - hidden], *more])


def _rebuild(what: str, path: str | None, found: object, expected: object, fix: str | None) -> FedsamError:
    return FedsamError(what, path=path, found=found, expected=expected, fix=fix)
