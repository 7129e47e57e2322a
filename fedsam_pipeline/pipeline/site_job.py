"""Long work at a site that outlives the process that starts it: a SuperNode ends its process after every message.

``python -m fedsam_pipeline.pipeline.site_job FOLDER`` does what ``FOLDER/asked.json`` says and writes ``FOLDER/done.json``.
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
ASKED, DONE = "asked.json", "done.json"
LOOK_SECONDS = 0.2
AGAIN = "delete the folder; the work is done again when the server asks again"


class SiteJob:
    """One piece of work: measuring a dataset, or preprocessing it for a plan.

    While it runs its process holds a lock, which ends with it however it ends; work that was interrupted is begun again by the next
    question.

    Args:
        folder: jobs lie below it.
        asked: what is to be done, plain JSON: ``kind`` and the rest. Other words are another job.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self._asked = dict(asked)
        self._folder = folder / f"{asked['kind']}_{sha256_of(self._asked)[:16]}"

    def ready(self, patience: float = 0.0) -> bool:
        """Whether it is done; starts it where nobody has.

        Args:
            patience: seconds to wait for it, so that short work needs one question only.

        Raises:
            FedsamError: it failed; the site's log says how.
        """
        patient_until = time.monotonic() + patience
        while not (done := self._ready_now()) and time.monotonic() < patient_until:
            time.sleep(LOOK_SECONDS)
        return done

    def _ready_now(self) -> bool:
        make_folder(self._folder)
        with open(self._folder / ".lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # its process holds the lock that it was born with
                return False
            if (self._folder / DONE).exists():
                return self._finished()
            write_json(self._folder / ASKED, self._asked)
            with open(self._folder / "output.log", "a", encoding="utf-8") as output:
                subprocess.Popen(
                    [sys.executable, "-m", __name__, str(self._folder.absolute())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
            return False

    def _finished(self) -> bool:
        failed = read_json(self._folder / DONE, fix=AGAIN).get("failed")
        if failed is not None:
            (self._folder / DONE).unlink()  # the next question tries again
            raise FedsamError("this site could not get ready", path=self._folder, found=failed, fix=f"see {self._folder / 'output.log'}")
        return True


def work(folder: Path) -> None:
    """Does what ``asked.json`` says, in this process; a failure is written down, and logged whole."""
    from fedsam_pipeline.pipeline.site_work import WORK

    asked = read_json(folder / ASKED, fix=AGAIN)
    with log_file(folder, "job", dated=False):
        try:
            WORK[asked["kind"]](asked)
        except Exception as error:
            log.exception("%s failed", asked["kind"])
            write_json(folder / DONE, {"failed": str(error)})
        else:
            write_json(folder / DONE, {"failed": None})


if __name__ == "__main__":
    os.umask(0o077)  # what a site measures is the site's own
    work(Path(sys.argv[1]))
