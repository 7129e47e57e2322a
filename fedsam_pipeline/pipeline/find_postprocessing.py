"""The postprocessing that belongs to trained folds."""

from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.record import RECORD_FILE, PredictionRecord
from fedsam_pipeline.postprocessing.apply import check_labels
from fedsam_pipeline.specs.bundle_index import POSTPROCESSING_FILE
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.postprocessing import MaskRule, Postprocessing

COPY_AGAIN = "train a numbered fold of this run again, or delete the file; --disable_postprocessing predicts without it"


def steps_of(fold_folders: Sequence[Path], plans: Plans) -> tuple[MaskRule, ...]:
    """What the run of these folds applies to its masks, in order; empty where nothing was chosen.

    Raises:
        FedsamError: as :func:`read_postprocessing`.
    """
    path = Path(fold_folders[0]).resolve().parent / POSTPROCESSING_FILE
    return read_postprocessing(path, plans, fix=COPY_AGAIN).steps if path.is_file() else ()


def common_steps(sources: Sequence[Path]) -> tuple[MaskRule, ...]:
    """What the masks of several folders were all made with: rules that were chosen for one model are no rules for the mean of others.

    Says so where there are rules and none is applied.

    Args:
        sources: folders of masks, each with the record of what made them; without it nothing is known of a folder's rules.

    Raises:
        FedsamError: a record is broken.
    """
    known = [
        PredictionRecord.load(source / RECORD_FILE, fix="predict this folder again, or --disable_postprocessing").postprocessing
        if (source / RECORD_FILE).is_file()
        else None
        for source in sources
    ]
    if all(steps == known[0] for steps in known):
        return known[0] or ()
    if any(known):
        told = "; ".join(f"{source}: {_shown(steps)}" for source, steps in zip(sources, known, strict=True))
        print(f"no postprocessing is applied, because the folders differ in theirs ({told})")
    return ()


def _shown(steps: Sequence[MaskRule] | None) -> str:
    return "not known" if steps is None else ", ".join(map(str, steps)) or "none"


def read_postprocessing(path: Path, plans: Plans, *, fix: str) -> Postprocessing:
    """A run's ``postprocessing.json``.

    Raises:
        FedsamError: the file is broken, or belongs to another plan or other classes.
    """
    document = Postprocessing.load(path, fix=fix)
    if document.plan_sha256 != plans.sha256():
        raise FedsamError(
            "postprocessing was chosen for another plan", path=path, found=document.plan_sha256, expected=plans.sha256(), fix=fix
        )
    check_labels(document.steps, plans.labels)
    return document
