"""``coverage.json``: from the preprocessed folder into the trained fold, and from there into prediction."""

import logging
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.trained_files import RETRAIN
from fedsam_pipeline.planning.coverage import coverage_of
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.specs.coverage import COVERAGE_FILE, Coverage
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.plans import Plans

log = logging.getLogger(__name__)


def planned_coverage(fingerprint: Fingerprint, plans: Plans) -> Coverage | None:
    """What a plan covers, from the merged fingerprint that it was made of; ``None``, and a line in the log, where it is another one."""
    if fingerprint.sha256() == plans.fingerprint_sha256:
        return coverage_of(fingerprint, load_thresholds().quality)
    log.warning("fingerprint.json is not that of plan %s: predictions will not be told which images it covers", plans.plans_name)
    return None


def write_coverage(folder: Path, coverage: Coverage | None) -> None:
    """Writes it into a trained fold; where nothing is known, what an earlier run left is removed."""
    if coverage is None:
        (folder / COVERAGE_FILE).unlink(missing_ok=True)
    else:
        coverage.save(folder / COVERAGE_FILE)


def model_coverage(folds: Sequence[Path], plans: Plans, *, fix: str = RETRAIN) -> Coverage | None:
    """What the plan of trained folds covers; ``None`` where no fold says so, as those of older versions.

    Args:
        folds: the fold folders.
        plans: of all of them.
        fix: what the user should do where a file is broken.

    Raises:
        FedsamError: a file is broken, or belongs to another plan.
    """
    found: Coverage | None = None
    for path in (fold / COVERAGE_FILE for fold in folds):
        if not path.is_file():
            continue
        found = Coverage.load(path, fix=fix)
        stated = (found.fingerprint_sha256, [channel.name for channel in found.channels])
        planned = (plans.fingerprint_sha256, [channel.name for channel in plans.channels])
        if stated != planned:
            raise FedsamError(
                "a model's coverage does not belong to its plan",
                path=path,
                found=f"fingerprint {stated[0]}, channels {', '.join(stated[1])}",
                expected=f"fingerprint {planned[0]}, channels {', '.join(planned[1])}",
                fix=fix,
            )
    return found
