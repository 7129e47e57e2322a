"""Fingerprints for the tests of planning, made of numbers or of tiny volumes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import Volume
from fedsam_pipeline.planning.fingerprint import measure_case
from fedsam_pipeline.planning.grids import exact_counts, log_position
from fedsam_pipeline.planning.measures import CaseMeasures, SiteMeasures
from fedsam_pipeline.planning.privacy import release
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
) -> CaseMeasures:
    """What is measured of a small random case with an organ, and a lesion in every second one."""
    generator = np.random.default_rng(seed)
    shape = (6 + seed % 3, 12 + seed % 4, 11)
    image = generator.normal(scale, scale, (channels, *shape))
    labels = np.zeros(shape, np.int16)
    labels[1:4, 2:8, 3:9] = 1
    if seed % 2:
        labels[4, 8:10, 2:4] = 2
    return measure_case(*volumes(image, labels, spacing), LABELS)


def random_site(seeds: range, **arguments: Any) -> Fingerprint:
    """One site of random cases, with nothing coarsened."""
    return fingerprint_of([random_case(seed, **arguments) for seed in seeds])


def pooled(cases: Sequence[CaseMeasures], labels: dict[str, int] = LABELS) -> SiteMeasures:
    """Cases as one site."""
    channels = max(len(case.channels) for case in cases) or 1
    site = SiteMeasures("Dataset001_Test", labels, tuple(f"sequence {channel}" for channel in range(channels)))
    for case in cases:
        site.add(case)
    return site


def fingerprint_of(cases: Sequence[CaseMeasures], floor: int = 1) -> Fingerprint:
    """What a site of these cases releases."""
    document = release(pooled(cases), floor).document
    assert isinstance(document, Fingerprint)
    return document


def stated(
    *,
    spacing: Sequence[Mapping[int, int]] | None = None,
    size: tuple[int, int, int] = (40, 50, 60),
    extent: tuple[int, int, int] | None = None,
    num_cases: int = 10,
    channels: tuple[str, ...] = ("MRI",),
    kept: int = 1000,
    object_mm: tuple[float, float, float] = (20.0, 20.0, 20.0),
    intensities: Mapping[int, int] | None = None,
    num_sites: int = 2,
) -> Fingerprint:
    """A fingerprint of cases that are all alike unless said otherwise; positions are those of the grids."""
    millimetres = extent or (10 * size[0], 10 * size[1], 10 * size[2])
    histogram = exact_counts(intensities or {100: CASE_MASS * num_cases})
    lengths = [exact_counts(counts) for counts in spacing or [{1000: num_cases}] * 3]

    def alike(positions: Iterable[int]) -> tuple[Counts, Counts, Counts]:
        z, y, x = (exact_counts({position: num_cases}) for position in positions)
        return z, y, x

    organ = ClassFingerprint(
        num_cases=num_cases,
        volume_mm3=exact_counts({100: num_cases}),
        components=exact_counts({1: num_cases}),
        extent_mm=alike(log_position(length) for length in object_mm),
    )
    return Fingerprint(
        dataset_name="Dataset001_Test",
        labels={"background": 0, "organ": 1},
        privacy_floor=1,
        num_sites=num_sites,
        num_cases=num_cases,
        spacing=(lengths[0], lengths[1], lengths[2]),
        size=alike(size),
        extent=alike(millimetres),
        kept_fraction=exact_counts({kept: num_cases}),
        channels=tuple(
            ChannelFingerprint(name=name, moments=IntensityMoments(weight=num_cases, mean=80.0, m2=100.0 * num_cases), histogram=histogram)
            for name in channels
        ),
        classes={"organ": organ},
    )
