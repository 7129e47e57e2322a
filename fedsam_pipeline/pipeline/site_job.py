"""Long work at a site that outlives the process that starts it: a SuperNode ends its process after every message.

``python -m fedsam_pipeline.pipeline.site_job FOLDER`` does what ``FOLDER/asked.json`` says and writes ``FOLDER/done.json``: what failed, or
what the server may be told.
"""

import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import make_folder, read_json, write_json
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.specs.canonical import sha256_of

log = logging.getLogger(__name__)
ASKED, DONE, STARTS = "asked.json", "done.json", "starts.json"
LOG, CRASHES = "job.log", "output.log"
"""what it logs, and what its process writes where that is not enough"""
MOST_STARTS = 3
LOOK_SECONDS = 0.2
AGAIN = "delete the folder; the work is done again when the server asks again"


class SiteJob:
    """One piece of work: measuring a dataset, or preprocessing it for a plan.

    While it runs its process holds a lock, which ends with it however it ends; work that was interrupted is begun again by the next
    question, ``MOST_STARTS`` times at most.

    Args:
        folder: jobs lie below it.
        asked: what is to be done, plain JSON: ``kind`` and the rest. Other words are another job.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self._asked = dict(asked)
        self._folder = folder / f"{asked['kind']}_{sha256_of(self._asked)[:16]}"

    def told(self, patience: float = 0.0) -> str | None:
        """What it tells the server once it is done, ``None`` before; starts it where nobody has.

        Args:
            patience: seconds to wait for it, so that short work needs one question only.

        Raises:
            FedsamError: it failed, or ended without a result again and again; the job's logs say how.
        """
        patient_until = time.monotonic() + patience
        while (told := self._told_now()) is None and time.monotonic() < patient_until:
            time.sleep(LOOK_SECONDS)
        return told

    def _told_now(self) -> str | None:
        make_folder(self._folder)
        with open(self._folder / ".lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # its process holds the lock that it was born with
                return None
            if (self._folder / DONE).exists():
                return self._finished()
            self._count_start()
            write_json(self._folder / ASKED, self._asked)
            with open(self._folder / CRASHES, "a", encoding="utf-8") as output:
                subprocess.Popen(
                    [sys.executable, "-m", __name__, str(self._folder.absolute())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
            return None

    def _count_start(self) -> None:
        path = self._folder / STARTS
        starts = read_json(path, fix=AGAIN)["starts"] if path.exists() else 0
        if starts >= MOST_STARTS:
            path.unlink()  # the next question tries again
            raise FedsamError(
                "this site's work ended without a result",
                path=self._folder,
                found=f"{starts} starts, no {DONE}",
                expected="a process that comes to its end: enough memory and disk, a Python environment that is whole",
                fix=f"see {self._folder / CRASHES} and {LOG} beside it; then train again with --c",
            )
        if starts:
            log.warning("%s ended without a result; it is begun again", self._folder.name)
        write_json(path, {"starts": starts + 1})

    def _finished(self) -> str:
        (self._folder / STARTS).unlink(missing_ok=True)
        done = read_json(self._folder / DONE, fix=AGAIN)
        if done["failed"] is not None:
            (self._folder / DONE).unlink()  # the next question tries again
            raise FedsamError("this site could not get ready", path=self._folder, found=done["failed"], fix=f"see {self._folder / LOG}")
        return str(done["told"])


def work(folder: Path) -> None:
    """Does what ``asked.json`` says, in this process; a failure is written down, and logged whole."""
    from fedsam_pipeline.pipeline.site_work import WORK

    with log_file(folder, "job", dated=False):
        try:
            asked = read_json(folder / ASKED, fix=AGAIN)
            told = WORK[asked["kind"]](asked)
        except Exception as error:
            log.exception("this job failed")
            write_json(folder / DONE, {"failed": str(error), "told": None})
        else:
            write_json(folder / DONE, {"failed": None, "told": told})


if __name__ == "__main__":
    os.umask(0o077)  # what a site measures is the site's own
    work(Path(sys.argv[1]))
