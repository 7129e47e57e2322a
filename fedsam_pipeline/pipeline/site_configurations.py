"""A site's part of model selection: predicts its own validation cases with every candidate, fold by fold, and adds up Dice."""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.volume import Volume, read_image
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.evaluation.dice_sums import DiceSums, add_sums
from fedsam_pipeline.evaluation.metrics import dice_from_counts
from fedsam_pipeline.evaluation.summary import CaseScore
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.inference.average import average
from fedsam_pipeline.inference.ensemble import FoldPredictors, gives_probabilities, stream_ensemble
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.probabilities import open_probabilities, write_probabilities
from fedsam_pipeline.inference.view_predictors import view_predictors
from fedsam_pipeline.model.bundle import FoldModels
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.model.trained_files import BUNDLE_FILE
from fedsam_pipeline.pipeline.configurations import Configuration
from fedsam_pipeline.pipeline.evaluate import reference_of, score_masks
from fedsam_pipeline.preprocessing.preprocess import preprocess_image
from fedsam_pipeline.preprocessing.store_case import input_signature
from fedsam_pipeline.specs.canonical import sha256_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteSelection:
    """What a site knows before it is asked (``flower.configuration_query.ConfigurationTask``).

    Attributes:
        site: its name.
        raw: the folder of its raw dataset: masks are scored on the images' own grid.
        cases: fold to the site's validation cases, which none of that fold's trainings saw.
        folders: candidate to fold to the trained fold.
        chosen: the configurations.
        patients: case to patient, where patients have several cases.
        floor: patients that every sum stands for, and every difference between the cases of two sums.
        device: name of the device.
        num_threads: CPU threads it may use.
        state_folder: its log, the sums of folds that are done, whose sums were told, and probabilities for as long as a fold takes.
    """

    site: str
    raw: Path
    cases: Mapping[str, tuple[str, ...]]
    folders: Mapping[str, Mapping[str, Path]]
    chosen: tuple[Configuration, ...]
    patients: Mapping[str, str]
    floor: int
    device: str
    num_threads: int
    state_folder: Path

    @property
    def configurations(self) -> list[str]:
        """Their names."""
        return [each.name for each in self.chosen]

    def scored(self) -> DiceSums:
        """Sums over the cases of all folds, of the classes that may leave the site; folds that were done before are not done again.

        Raises:
            FedsamError: a model, an image or a mask is missing or broken, or the sums would differ from earlier ones by too few patients.
        """
        raw = load_raw_dataset(self.raw)
        patients = Counter(self.patients.get(case, case) for cases in self.cases.values() for case in cases)
        self._refuse_small_difference(set(patients))
        parts = [self._fold(fold, cases, raw) for fold, cases in self.cases.items() if cases]
        if not parts:
            return DiceSums({name: {} for name in self.configurations})
        cases_a_patient = max(patients.values())  # so many times as many cases make sure of the floor
        told = add_sums(parts).released(self.floor * cases_a_patient if self.floor > 1 else 1)
        if told.classes:
            self._note_told(set(patients))
        return told

    @property
    def _told_file(self) -> Path:
        return self.state_folder / "told.json"

    def _told(self) -> list[list[str]]:
        """The patients of every set of cases that sums were told of. The file stays here."""
        known: list[list[str]] = read_json(self._told_file)["patients"] if self._told_file.exists() else []
        return known

    def _refuse_small_difference(self, patients: set[str]) -> None:
        """Two sums of sets of cases that differ by few patients tell these patients' Dice."""
        for earlier in self._told():
            if 0 < len(patients ^ set(earlier)) < self.floor:
                raise FedsamError(
                    "these folds differ from those of earlier sums by fewer patients than the privacy floor",
                    path=self._told_file,
                    found=len(patients ^ set(earlier)),
                    expected=f"no difference, or {self.floor} patients and more",
                    fix="ask with the folds of the first time: -f",
                )

    def _note_told(self, patients: set[str]) -> None:
        known = self._told()
        if sorted(patients) not in known:
            write_json(self._told_file, {"schema_version": 1, "patients": [*known, sorted(patients)]})

    def _fold(self, fold: str, cases: Sequence[str], raw: RawDataset) -> DiceSums:
        path = self.state_folder / f"fold_{fold}.json"
        signature = self._signature(fold, cases, raw)
        names = tuple(raw.label_scheme.scored)
        known: dict[str, Any] = read_json(path) if path.exists() else {}
        if known.get("signature") == signature:
            return DiceSums.from_answer(known["sums"], configurations=self.configurations, names=names, most_cases=len(cases))
        with self._scratch() as scratch:
            sums = DiceSums.of_cases(self._dice(fold, cases, raw, scratch), names)
        write_json(path, {"schema_version": 1, "signature": signature, "sums": sums.to_dict()})
        return sums

    def _signature(self, fold: str, cases: Sequence[str], raw: RawDataset) -> str:
        """SHA-256 of all that the sums depend on."""
        labels = raw.label_scheme
        adapters = {name: read_json(folders[fold] / BUNDLE_FILE)["adapter_sha256"] for name, folders in self.folders.items()}
        files = [[case, input_signature(raw, case)] for case in cases]
        return sha256_of([adapters, self.configurations, files, list(labels.scored.items()), labels.annotated(raw.site_labels)])

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = self.state_folder / "probabilities"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier process that was killed
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def _dice(self, fold: str, cases: Sequence[str], raw: RawDataset, scratch: Path) -> dict[str, NDArray[np.float64]]:
        """Configuration to (N, K)."""
        known = reference_of(raw, cases)
        pairs = [each for each in self.chosen if len(each.members) > 1]
        found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in self.configurations}
        for number, (name, folders) in enumerate(self.folders.items()):
            log.info("%s: fold %s, %d case(s) with %s", self.site, fold, len(cases), name)
            paths = [scratch / f"{number}_{index}.b2nd" for index in range(len(cases))] if pairs else [None] * len(cases)
            found[name] = [
                _dice_of(score_masks(case, known.masks[case], folders[fold], mask, known))
                for case, mask in zip(cases, _masks(folders[fold], cases, raw, self.device, paths, scratch), strict=True)
            ]
        numbers = {name: number for number, name in enumerate(self.folders)}
        for pair in pairs:
            for index, case in enumerate(cases):
                members = [open_probabilities(scratch / f"{numbers[name]}_{index}.b2nd") for name in pair.members]
                mask = Volume(average(members).astype(np.int16), members[0].geometry)
                found[pair.name].append(_dice_of(score_masks(case, known.masks[case], scratch, mask, known)))
        return {name: np.stack(rows) for name, rows in found.items()}


def _masks(
    folder: Path, cases: Sequence[str], raw: RawDataset, device: str, paths: Sequence[Path | None], scratch: Path
) -> Iterator[Volume]:
    """The masks of one trained fold on the images' own grid, predicted as ``fedsam_predict`` does; probabilities go to ``paths``."""
    chosen = choose_device(device)
    models = FoldModels([folder], chosen)
    plans = models.plans
    views = view_predictors(
        models.model, plans, models.configuration, chosen, autocast_dtype(chosen), mirror_axes=plans.training.mirror_axes
    )
    predictors = FoldPredictors(models, *views)
    for case, path in zip(cases, paths, strict=True):
        volume = read_image(raw.image_paths(case))
        image, properties = preprocess_image(volume, plans, case=case)
        parts = stream_ensemble(predictors, image, scratch)
        are_logits = not gives_probabilities(predictors)
        with nullcontext() if path is None else write_probabilities(path, properties, plans.labels, are_logits=are_logits) as sink:
            mask = export_stream(parts, properties, plans, sink)
        yield Volume(mask.astype(np.int16), volume.geometry)


def _dice_of(score: CaseScore) -> NDArray[np.float64]:
    """(K,), NaN for what its site did not annotate, too."""
    dice = dice_from_counts(score.counts)
    return dice if score.annotated is None else np.where(score.annotated, dice, np.nan)
