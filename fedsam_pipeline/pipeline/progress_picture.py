"""``progress.png``, drawn while the sites work."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ProgressPicture:
    """Draws in a thread of its own, one picture at a time: a round does not wait for a picture of the one before.

    Args:
        path: of the PNG; the last picture is there when the ``with`` block ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._drawing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._thread.shutdown()
        if error is None and self._drawing is not None:
            self._drawing.result()

    def draw(self, progress: Sequence[Mapping[str, Any]]) -> None:
        """Draws the lines of ``progress.jsonl`` as they are now.

        Raises:
            FedsamError: the picture before could not be written.
        """
        if self._drawing is not None:
            self._drawing.result()
        self._drawing = self._thread.submit(_draw, progress, self._path)


def _draw(progress: Sequence[Mapping[str, Any]], path: Path) -> None:
    from fedsam_pipeline.report.curves import progress_png  # matplotlib takes a second to import, which start-up need not wait for

    progress_png(progress, path)
