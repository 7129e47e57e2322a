"""Tiny preprocessed stores, written through the real store."""

from pathlib import Path

import numpy as np

from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.case import CaseProperties

SHAPE = (6, 24, 26)


def write_store(
    folder: Path,
    cases: list[str],
    *,
    seed: int = 0,
    site: str = "site_a",
    offset: float = 0.0,
    ignored: tuple[slice, slice, slice] | None = None,
    hidden: int | None = None,
) -> CaseStore:
    """Cases with a bright block (class 1) and a dark one (class 2); ``ignored`` voxels are -1, the class ``hidden`` is not annotated."""
    store = CaseStore(folder)
    for index, case in enumerate(cases):
        generator = np.random.default_rng([seed, index])
        labels = np.zeros(SHAPE, np.int8)
        labels[1:5, 4:12, 5 : 12 + index % 3] = 1
        labels[2:5, 14:20, 12:20] = 2
        image = generator.normal(offset, 0.2, SHAPE).astype(np.float32)
        image += np.array([0.0, 1.5, -1.5], np.float32)[labels]
        if hidden is not None:
            labels[labels == hidden] = 0
        if ignored is not None:
            labels[ignored] = -1
        properties = CaseProperties(
            case=case,
            site=site,
            original_size=SHAPE,
            original_spacing=(1.0, 1.0, 1.0),
            original_origin=(0.0, 0.0, 0.0),
            original_direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
            canonical_size=SHAPE,
            crop_start=(0, 0, 0),
            crop_size=SHAPE,
            resampled_size=SHAPE,
            slice_axis=0,
        )
        foreground = {value: np.argwhere(labels == value) for value in (1, 2)}
        store.write(case, image[None], labels, properties, foreground, None if ignored is None else np.argwhere(labels != -1))
    return store
