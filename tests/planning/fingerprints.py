"""Fingerprints for the tests of planning, made of numbers or of tiny volumes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import Volume
from fedsam_pipeline.planning.fingerprint import measure_case
from fedsam_pipeline.planning.grids import log_position
from fedsam_pipeline.planning.merge import pool_fingerprints
from fedsam_pipeline.specs.fingerprint import CASE_MASS, ChannelFingerprint, ClassFingerprint, Counts, Fingerprint, IntensityMoments

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def volumes(
    image: NDArray[Any],
    labels: NDArray[Any],
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    direction: tuple[float, ...] = IDENTITY,
) -> tuple[Volume, Volume]:
    """(C, Z, Y, X) and (Z, Y, X) as volumes on one grid."""
    size = (labels.shape[0], labels.shape[1], labels.shape[2])
    geometry = Geometry(size, spacing, (0.0, 0.0, 0.0), direction)
    return Volume(image.astype(np.float32), geometry), Volume(labels.astype(np.int16), geometry)


def random_case(
    seed: int, *, channels: int = 1, scale: float = 100.0, spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)
) -> Fingerprint:
    """The fingerprint of a small random case with an organ, and a lesion in every second one."""
    generator = np.random.default_rng(seed)
    shape = (6 + seed % 3, 12 + seed % 4, 11)
    image = generator.normal(scale, scale, (channels, *shape))
    labels = np.zeros(shape, np.int16)
    labels[1:4, 2:8, 3:9] = 1
    if seed % 2:
        labels[4, 8:10, 2:4] = 2
    names = tuple(f"sequence {channel}" for channel in range(channels))
    return measure_case(*volumes(image, labels, spacing), "Dataset001_Test", names, LABELS)


def random_site(seeds: range, **arguments: Any) -> Fingerprint:
    """One site of random cases."""
    return pool_fingerprints([random_case(seed, **arguments) for seed in seeds], num_sites=1)


def stated(
    *,
    spacing: tuple[Counts, Counts, Counts] | None = None,
    size: tuple[int, int, int] = (40, 50, 60),
    extent: tuple[int, int, int] | None = None,
    num_cases: int = 10,
    channels: tuple[str, ...] = ("MRI",),
    kept: int = 1000,
    object_mm: tuple[float, float, float] = (20.0, 20.0, 20.0),
    intensities: Counts | None = None,
    num_sites: int = 2,
) -> Fingerprint:
    """A fingerprint of cases that are all alike unless said otherwise; positions are those of the grids."""
    spacing = spacing or ({1000: num_cases}, {1000: num_cases}, {1000: num_cases})
    millimetres = extent or (10 * size[0], 10 * size[1], 10 * size[2])
    histogram = intensities or {100: CASE_MASS * num_cases}
    z, y, x = (log_position(length) for length in object_mm)
    organ = ClassFingerprint(
        num_cases=num_cases,
        volume_mm3={100: num_cases},
        components={1: num_cases},
        extent_mm=({z: num_cases}, {y: num_cases}, {x: num_cases}),
    )
    return Fingerprint(
        dataset_name="Dataset001_Test",
        labels={"background": 0, "organ": 1},
        num_sites=num_sites,
        num_cases=num_cases,
        spacing=spacing,
        size=({size[0]: num_cases}, {size[1]: num_cases}, {size[2]: num_cases}),
        extent=({millimetres[0]: num_cases}, {millimetres[1]: num_cases}, {millimetres[2]: num_cases}),
        kept_fraction={kept: num_cases},
        channels=tuple(
            ChannelFingerprint(name=name, moments=IntensityMoments(weight=num_cases, mean=80.0, m2=100.0 * num_cases), histogram=histogram)
            for name in channels
        ),
        classes={"organ": organ},
    )
