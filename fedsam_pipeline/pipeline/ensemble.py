"""``fedsam_ensemble``: folders of saved probabilities in, one folder of masks out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fedsam_pipeline.dataset.volume import FILE_ENDINGS, write_labels
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.average import average
from fedsam_pipeline.inference.inputs import mask_ending
from fedsam_pipeline.inference.label_names import LabelFile, copied_content
from fedsam_pipeline.inference.probabilities import AGAIN, ENDING, open_probabilities, probabilities_path
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.pipeline.find_postprocessing import common_steps
from fedsam_pipeline.pipeline.predict import report_outcome
from fedsam_pipeline.postprocessing.apply import apply_rules
from fedsam_pipeline.specs.bundle_index import DATASET_FILE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnsembleCase:
    """One case: the probabilities of every model, and a mask of it that lends its format and its place."""

    case: str
    members: tuple[Path, ...]
    mask: Path


def ensemble(sources: Sequence[Path], target: Path, *, save_probabilities: bool = False, postprocessing: bool = True) -> int:
    """Averages the probabilities of every case over all folders and writes its mask.

    Args:
        sources: folders that ``fedsam_predict --save_probabilities`` (or this function) wrote.
        target: folder of the masks.
        save_probabilities: write the mean probabilities, too.
        postprocessing: apply what the masks of all folders were made with, where that is the same.

    Returns:
        0, or 1 where some cases failed: they are named, the others are written.

    Raises:
        FedsamError: a folder is missing, has no probabilities, lacks a case that another one has, or is ``target``, or does not say how its
            masks were made in a form that can be read; its ``dataset.json`` is broken, or another one stands in ``target``.
    """
    cases = _find_cases(sources, target)
    steps = common_steps(sources) if postprocessing else ()
    failures: dict[str, str] = {}
    endings = {mask_ending(case.mask) for case in cases}
    names = copied_content(sources)
    labels = None if names is None else LabelFile(target / DATASET_FILE, names, endings.pop() if len(endings) == 1 else None)
    if labels is not None:
        labels.check()
    with log_file(target / "logs", "fedsam_ensemble"), logging_redirect_tqdm():
        if labels is not None:
            labels.write()
        for number, case in enumerate(tqdm(cases, desc="averaging", unit="case", disable=None), start=1):
            output = target / case.mask.name
            try:
                members = [open_probabilities(path) for path in case.members]
                mask = average(members, probabilities_path(output, case.case) if save_probabilities else None)
                mask = apply_rules(mask, members[0].geometry.spacing, steps, members[0].labels)
                write_labels(output, mask, members[0].geometry, like=case.mask, class_names=members[0].labels)
            except Exception as error:
                if len(cases) == 1:
                    raise
                failures[case.case] = str(error)
                log.error("[%d/%d] %s FAILED: %s", number, len(cases), case.case, error, exc_info=not isinstance(error, FedsamError))
            else:
                log.info("[%d/%d] %s -> %s", number, len(cases), case.case, output)
    return report_outcome(failures, len(cases), target)


def _find_cases(sources: Sequence[Path], target: Path) -> list[EnsembleCase]:
    if len({source.resolve() for source in sources}) < 2:
        raise FedsamError("an ensemble needs at least two folders", found=", ".join(map(str, sources)), fix="give several to -i")
    found: dict[Path, set[str]] = {}
    for source in sources:
        if source.resolve() == target.resolve():
            raise FedsamError("the masks would overwrite those of a member", path=target, fix="choose another folder for -o")
        found[source] = {path.name.removesuffix(ENDING) for path in source.glob(f"*{ENDING}")}
        if not found[source]:
            raise FedsamError("no probabilities found", path=source, expected=f"files named CASE{ENDING}", fix=f"check -i, or {AGAIN}")
    names = sorted(set.union(*found.values()))
    missing = [f"{source}: {', '.join(sorted(set(names) - have)[:5])}" for source, have in found.items() if have != set(names)]
    if missing:
        raise FedsamError(
            "some folders lack cases that others have",
            found="missing in " + "; ".join(missing),
            expected=f"the same {len(names)} cases in all folders",
            fix=f"{AGAIN}, with --continue_prediction",
        )
    return [EnsembleCase(name, tuple(source / f"{name}{ENDING}" for source in sources), _mask_of(name, sources[0])) for name in names]


def _mask_of(case: str, folder: Path) -> Path:
    """The mask beside the probabilities, whatever its format."""
    masks = [path for ending in FILE_ENDINGS if (path := folder / f"{case}{ending}").is_file()]
    if not masks:
        raise FedsamError(
            "the mask is missing that belongs to a file of probabilities",
            path=folder / f"{case}{ENDING}",
            expected=f"{case} with one of {', '.join(FILE_ENDINGS)}, for its format and its place in the patient",
            fix=f"{AGAIN}, and without --dicom_seg",
        )
    return masks[0]
