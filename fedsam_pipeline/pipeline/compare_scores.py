"""Scores of trained models on the same cases, on the images' own grid, kept beside each model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.volume import Volume
from fedsam_pipeline.evaluation.metrics import dice_from_counts
from fedsam_pipeline.evaluation.summary import CaseScore
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.model.bundle import load_bundle
from fedsam_pipeline.model.device import autocast_dtype
from fedsam_pipeline.model.trained_files import BUNDLE_FILE
from fedsam_pipeline.pipeline.evaluate import Reference, reference_of, score_masks
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.preprocessing.store_case import input_signature
from fedsam_pipeline.specs.canonical import sha256_of
from fedsam_pipeline.specs.case import CaseProperties

log = logging.getLogger(__name__)
SCORES_FILE = "validation/native.json"


@dataclass(frozen=True)
class ModelScores:
    """One model on N cases and K scored classes.

    Attributes:
        dice: (N, K); NaN where a class is absent in both masks, or was not annotated by the case's site.
        hd95: (N, K) mm; NaN also where the class is absent in one mask.
        missing: (N, K) whether it is absent in one mask only.
    """

    dice: NDArray[np.float64]
    hd95: NDArray[np.float64]
    missing: NDArray[np.bool_]


@dataclass(frozen=True)
class ScoredCases:
    """The cases that every model is scored on.

    Attributes:
        names: N cases, sorted by site, then name.
        sites: (N,) their sites.
        classes: the K scored names: foreground classes, or regions.
        raw: the dataset, for reference masks on the images' own grid.
        store: the preprocessed images.
    """

    names: tuple[str, ...]
    sites: tuple[str, ...]
    classes: tuple[str, ...]
    raw: RawDataset
    store: CaseStore

    @classmethod
    def of(cls, raw: RawDataset, store: CaseStore, cases: Sequence[str]) -> "ScoredCases":
        """``cases`` of a raw dataset that stand in ``store``."""
        ordered = sorted((raw.site_of(case), case) for case in cases)
        return cls(tuple(case for _, case in ordered), tuple(site for site, _ in ordered), tuple(raw.label_scheme.scored), raw, store)

    def reference(self) -> Reference:
        """The reference masks, as ``fedsam_evaluate`` knows them."""
        return reference_of(self.raw, self.names)

    def signature(self) -> str:
        """SHA-256 of what the scores depend on beside the model: files, sites, classes and what was annotated."""
        labels = self.raw.label_scheme
        files = [[case, input_signature(self.raw, case)] for case in self.names]
        return sha256_of([files, list(labels.scored.items()), labels.annotated(self.raw.site_labels)])


def scores_of(folder: Path, cases: ScoredCases, device: torch.device) -> ModelScores:
    """The scores of the model in a fold folder: read where they are known, else made and written to ``validation/native.json``.

    Images come from the store, where they are preprocessed as ``fedsam_predict`` would; masks are brought back to the image's grid and
    scored there. No test-time augmentation.

    Raises:
        FedsamError: the model, a case of the store or a reference mask cannot be read, or a mask does not fit.
    """
    path = folder / SCORES_FILE
    expected = {
        "schema_version": 1,
        "grid": "native",
        "adapter_sha256": read_json(folder / BUNDLE_FILE)["adapter_sha256"],
        "cases_sha256": cases.signature(),
    }
    document: dict[str, Any] = read_json(path) if path.exists() else {}
    if any(document.get(key) != value for key, value in expected.items()):
        rows = [_row(score) for score in _score(folder, cases, device)]
        document = expected | {"classes": list(cases.classes), "cases": rows}
        write_json(path, document)
    by_name = {row["case"]: row for row in document["cases"]}
    ordered = [by_name[case] for case in cases.names]
    return ModelScores(
        dice=np.array([row["dice"] for row in ordered], dtype=np.float64),  # None becomes NaN
        hd95=np.array([row["hd95"] for row in ordered], dtype=np.float64),
        missing=np.array([row["missing"] for row in ordered], dtype=bool),
    )


def _score(folder: Path, cases: ScoredCases, device: torch.device) -> list[CaseScore]:
    loaded = load_bundle(folder, device)
    predictor = Predictor(loaded.model, loaded.plans, device, autocast_dtype(device))
    known = cases.reference()
    scores = []
    for name in tqdm(cases.names, desc=f"scoring {folder.parent.name}", unit="case", disable=None):
        stored = cases.store.open(name)
        mask = export_stream(predictor.stream_case(stored.image), stored.properties, loaded.plans)
        found = Volume(mask.astype(np.int16), _geometry(stored.properties))
        scores.append(score_masks(name, known.masks[name], folder, found, known))
    return scores


def _geometry(properties: CaseProperties) -> Geometry:
    return Geometry(properties.original_size, properties.original_spacing, properties.original_origin, tuple(properties.original_direction))


def _row(score: CaseScore) -> dict[str, Any]:
    annotated = np.ones(len(score.counts), dtype=bool) if score.annotated is None else score.annotated
    dice = np.where(annotated, dice_from_counts(score.counts), np.nan)
    return {
        "case": score.case,
        "site": score.site,
        "tp_fp_fn": [row if known else None for row, known in zip(score.counts.tolist(), annotated, strict=True)],
        "dice": _numbers(dice),
        "hd95": _numbers(score.scored_hd95),
        "missing": score.missing.tolist(),
    }


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
