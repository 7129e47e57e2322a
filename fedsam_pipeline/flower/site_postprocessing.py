"""What a site answers when it is asked what rules of postprocessing change: sums over its validation cases, or nothing."""

import logging
from collections.abc import Sequence

import numpy as np

from fedsam_pipeline.dataset.label_scheme import IGNORE
from fedsam_pipeline.flower.kept_masks import KeptMasks, MaskIndex
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.postprocessing.apply import check_labels
from fedsam_pipeline.postprocessing.deltas import DeltaSums, case_deltas, sum_cases
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.postprocessing import MaskRule

log = logging.getLogger(__name__)


def answer(setup: SiteSetup, decided: Sequence[MaskRule], candidates: Sequence[MaskRule]) -> DeltaSums:
    """What each candidate changes, alone, after the decided rules: summed over the validation cases of all folds that may be told of.

    The masks are those of the final evaluations; nothing is predicted again.

    Raises:
        FedsamError: a rule names a class that there is not, or a file of this site is missing or broken.
    """
    labels = setup.labels
    check_labels((*decided, *candidates), labels.classes)
    groups, names = list(labels.scored.values()), list(labels.scored)
    everything = np.ones(len(groups), dtype=np.bool_)
    known = {site: labels.scorable(values) for site, values in setup.annotated.items()}
    store, plans = CaseStore(setup.store_folder), setup.model.plans
    spacing = [plans.target_spacing[plans.slice_axis], *(mm for axis, mm in enumerate(plans.target_spacing) if axis != plans.slice_axis)]
    deltas, counted = [], []
    for fold, index in _released(setup).items():
        masks = _kept(setup, fold)
        for name, owner in sorted(index.cases.items()):
            reference = np.asarray(store.open(name).labels[:])
            mask = masks.read(name, reference.shape)
            deltas.append(case_deltas(reference, mask, spacing, decided, candidates, labels.classes, groups, IGNORE))
            counted.append(known.get(owner, everything))
    sums = sum_cases(deltas, counted, names) if deltas else DeltaSums({}, tuple({} for _ in candidates))
    told = ", ".join(f"{name} {number}" for name, number in sums.cases.items())
    log.info("postprocessing: asked of %s; told sums over cases of %s", ", ".join(map(str, candidates)), told or "nothing")
    return sums


def _released(setup: SiteSetup) -> dict[str, MaskIndex]:
    """The folds of this run that sums may be made over, by name.

    Folds whose patients are too few for the floor wait until others have joined them. From then on they are in every sum, so that no two
    sums of the same rules differ by fewer patients than the floor.
    """
    found = {fold: index for fold in sorted({setup.fold, *setup.other_folds}) if (index := _kept(setup, fold).index()) is not None}
    agreed = setup.model.plans.preprocessing_sha256()
    there = {fold: index for fold, index in found.items() if index.preprocessing_sha256 == agreed}
    for fold in sorted(found.keys() - there.keys()):
        log.warning("the masks of fold %s are of another plan: left out", fold)
    released = {
        fold
        for fold, index in there.items()
        if index.released_with and {index.released_with} == {_group(there.get(other)) for other in index.released_with}
    }
    waiting = tuple(fold for fold in there if fold not in released)
    patients = {setup.patients.get(case, case) for fold in waiting for case in there[fold].cases}
    if len(patients) >= max(1, setup.privacy_floor):
        for fold in waiting:
            there[fold] = there[fold].model_copy(update={"released_with": waiting})
            _kept(setup, fold).note(there[fold])
        released.update(waiting)
    elif waiting:
        log.info("postprocessing: %d patients of fold %s wait, fewer than %d", len(patients), ", ".join(waiting), setup.privacy_floor)
    return {fold: there[fold] for fold in sorted(released)}


def _group(index: MaskIndex | None) -> tuple[str, ...]:
    return () if index is None else index.released_with


def _kept(setup: SiteSetup, fold: str) -> KeptMasks:
    return KeptMasks(setup.state_folder if fold == setup.fold else setup.other_folds[fold])
