"""Looks into the voxels of a case: do image and mask belong together, and does the mask hold only known classes?

Every fault of a case becomes a finding, as far as the files can be read. ``verify_case`` raises them; the report of
``--verify_dataset_integrity`` collects them, with the checks of ``dataset_checks`` that compare cases.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from fedsam_pipeline.dataset.findings import Check, Finding, FindingsError, Severity
from fedsam_pipeline.dataset.image_files import Inspection, geometry_of, inspect_file, not_finite
from fedsam_pipeline.dataset.label_scheme import IGNORE_NAME
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.straighten import nearly_straight
from fedsam_pipeline.dataset.volume import (
    SAME_GRID_MM,
    Geometry,
    Volume,
    channels_apart,
    describe_difference,
    label_array,
    to_canonical,
)
from fedsam_pipeline.errors import FedsamError

sitk: Any = SimpleITK  # it ships without types
EXACT_GRID_MM = 1e-3
"""headers that agree within this are left alone; up to ``SAME_GRID_MM`` they pass, with a warning in the full report"""
ROUNDING_VOXELS = 0.1
"""a header that puts no corner further off than this share of the smallest voxel side was rounded: ``--fix`` takes the image's"""
_NOT_REWRITTEN = {Check.READABLE, Check.SCALAR_3D, Check.FINITE}
"""``--fix`` leaves a file with one of these as it is: writing it anew would lose what is wrong with it"""


@dataclass(frozen=True)
class Examined:
    """A case with all that is wrong with it.

    Args:
        findings: in the order of the files: channels, then the mask.
        image: (C, Z, Y, X) float32, ``None`` where a channel cannot be had.
        labels: (Z, Y, X) int16 in the federation's values, ``None`` where there is no usable mask.
    """

    findings: tuple[Finding, ...]
    image: Volume | None
    labels: Volume | None


@dataclass(frozen=True)
class CaseRecord:
    """What the checks that compare cases need to know of one.

    Args:
        case, site: whose it is.
        test: whether it is one of ``imagesTs``.
        findings: of this case alone.
        hashes: SHA-256 of each channel's voxels in canonical axes; ``None`` for one that is constant or unreadable.
        values: label values in the mask, or ``None`` without a usable one.
    """

    case: str
    site: str
    test: bool
    findings: tuple[Finding, ...]
    hashes: tuple[str | None, ...]
    values: tuple[int, ...] | None


def verify_case(dataset: RawDataset, case: str) -> tuple[Volume, Volume]:
    """Reads a labelled case and checks it.

    Args:
        dataset: the raw dataset.
        case: one of ``dataset.cases``.

    Returns:
        The image (C, Z, Y, X) float32 and the mask (Z, Y, X) int16, on the same grid; channels and values are the federation's.

    Raises:
        FindingsError: a file is missing or unreadable, channels or mask lie on different grids, NaN voxels, a label value that
            ``dataset.json`` does not name, or one of a class that the case's site did not annotate. All faults of the case are named.
    """
    examined = examine_case(dataset, case)
    if examined.findings or examined.image is None or examined.labels is None:
        raise FindingsError(examined.findings, case)
    return examined.image, examined.labels


def examine_case(dataset: RawDataset, case: str, *, test: bool = False, thorough: bool = False) -> Examined:
    """Reads a case and collects its faults.

    Args:
        dataset: the raw dataset.
        case: one of ``dataset.cases``, or of ``dataset.test_cases`` with ``test``, whose mask in ``labelsTs`` is looked at if it is there.
        test: see ``case``.
        thorough: also look for what is no error but deserves a look; without it all findings are errors.
    """
    site = owner(dataset, case, test=test)
    notes = _Notes(case, site)
    paths = dataset.test_image_paths(case) if test else dataset.image_paths(case)
    mask_path = dataset.folder / "labelsTs" / f"{case}{dataset.file_ending}" if test else dataset.label_path(case)
    array, grid = _examine_image(paths, dataset.channel_names, notes, thorough)
    labels = None
    if not test or mask_path.is_file():
        labels = _examine_mask(dataset, mask_path, paths[0], grid, notes, thorough)
    geometry = grid or _unplaced(array)
    image = None if array is None or geometry is None else Volume(array, geometry)
    broken = {finding.path for finding in notes.findings if finding.check in _NOT_REWRITTEN}
    broken |= {str(path) for path in paths if path.is_dir()}  # nor is a DICOM series
    findings = (replace(finding, fixable=finding.fixable and finding.path not in broken) for finding in notes.findings)
    return Examined(tuple(findings), image, labels)


def case_record(dataset: RawDataset, case: str, *, test: bool = False) -> CaseRecord:
    """All checks on one case, without its voxels."""
    examined = examine_case(dataset, case, test=test, thorough=True)
    hashes: tuple[str | None, ...] = ()
    if examined.image is not None:
        canonical = to_canonical(examined.image).array
        hashes = tuple(None if channel.min() == channel.max() else _hash(channel) for channel in canonical)
    values = None if examined.labels is None else tuple(int(value) for value in np.unique(examined.labels.array))
    return CaseRecord(case, owner(dataset, case, test=test), test, examined.findings, hashes, values)


def owner(dataset: RawDataset, case: str, *, test: bool = False) -> str:
    """The site of a labelled case, or of one of ``imagesTs``."""
    return next(site for site, cases in dataset.test_sites.items() if case in cases) if test else dataset.site_of(case)


def rounded(found: Geometry, expected: Geometry) -> bool:
    """Whether two grids differ by no more than the rounding of a header: ``ROUNDING_VOXELS``."""
    return found.same_grid(expected, ROUNDING_VOXELS * min(expected.spacing))


class _Notes:
    """Collects the findings of one case."""

    def __init__(self, case: str, site: str) -> None:
        self.case, self.site = case, site
        self.findings: list[Finding] = []

    def error(self, check: Check, error: FedsamError, *, fixable: bool = False) -> None:
        self.findings.append(Finding.of(error, check, self.case, self.site, fixable=fixable))

    def warn(self, check: Check, error: FedsamError, *, fixable: bool = False) -> None:
        self.findings.append(Finding.of(error, check, self.case, self.site, severity=Severity.WARNING, fixable=fixable))

    def file(self, path: Path, thorough: bool) -> Inspection:
        """Reads a file and notes its faults."""
        inspection = inspect_file(path)
        for fault in inspection.faults:
            self.error(fault.check, fault.error, fixable=fault.check is Check.STRAIGHT and nearly_straight(path))
        if thorough and inspection.spare_axis:
            error = FedsamError(
                "an image has a fourth axis of length 1",
                path=path,
                found="4D, one frame",
                expected="3D",
                fix="store the frame as a 3D image; it is read as one anyway",
            )
            self.warn(Check.ONE_FRAME, error, fixable=True)
        return inspection


def _examine_image(
    paths: list[Path], names: tuple[str, ...], notes: _Notes, thorough: bool
) -> tuple[NDArray[np.float32] | None, Geometry | None]:
    """The channels as far as they can be read (all or ``None``), and the first one's grid where it can be trusted."""
    array: NDArray[np.float32] | None = None
    grid: Geometry | None = None
    complete = True
    constant = []
    for channel, path in enumerate(paths):
        inspection = notes.file(path, thorough)
        if inspection.image is None:
            complete = False
            continue
        here = geometry_of(inspection.image)
        voxels = sitk.GetArrayViewFromImage(inspection.image)
        if channel == 0:
            grid = here if inspection.straight else None
        elif grid is not None and inspection.straight:
            _compare(notes, Check.CHANNEL_GRID, channels_apart(path, here, paths[0], grid), here, grid, thorough)
        if array is None:
            array = np.empty((len(paths), *voxels.shape), dtype=np.float32)
        if array.shape[1:] != voxels.shape:  # found by the comparison, unless one of the grids cannot be trusted
            complete = False
            continue
        with np.errstate(over="ignore"):  # float64 beyond float32's range becomes infinite
            array[channel] = voxels
        bad = voxels.size - int(np.isfinite(array[channel]).sum())
        if bad and not any(fault.check is Check.FINITE for fault in inspection.faults):
            notes.error(Check.FINITE, not_finite(path, bad, voxels.size))
        if thorough and not bad and voxels.size and array[channel].min() == array[channel].max():
            constant.append((channel, float(array[channel].flat[0])))
    for channel, value in constant:
        _note_constant(notes, paths[channel], names[channel], value, everything=len(constant) == len(paths))
    return (array if complete else None), grid


def _note_constant(notes: _Notes, path: Path, name: str, value: float, *, everything: bool) -> None:
    """An image without any contrast is a broken export; one missing sequence among several may be meant."""
    error = FedsamError(
        "an image is constant" if everything else f"a channel is constant ({name})",
        path=path,
        found=f"{value:g} in every voxel",
        expected="an image with contrast",
        fix="export the image again, or leave the case out"
        if everything
        else "export the channel again, unless it stands for a missing one",
    )
    (notes.error if everything else notes.warn)(Check.CONSTANT, error)


def _examine_mask(dataset: RawDataset, path: Path, image_path: Path, grid: Geometry | None, notes: _Notes, thorough: bool) -> Volume | None:
    inspection = notes.file(path, thorough)
    if inspection.image is None:
        return None
    here = geometry_of(inspection.image)
    if grid is not None and inspection.straight:
        _compare(notes, Check.MASK_GRID, _misplaced(notes.case, path, image_path, here, grid), here, grid, thorough)
    try:
        stored = label_array(inspection.image, path)
    except FedsamError as error:
        if not any(fault.check is Check.FINITE for fault in inspection.faults):
            notes.error(Check.WHOLE_VALUES, error)
        return None
    try:
        labels = dataset.mapping.apply(stored, path)
    except FedsamError as error:
        notes.error(Check.KNOWN_VALUES, error)
        return None
    values = {int(value) for value in np.unique(labels)}
    for fault in _value_errors(dataset, notes.case, notes.site, path, values):
        notes.error(Check.KNOWN_VALUES, fault)
    if thorough:
        _note_unusual_mask(notes, path, inspection.image, values)
    return Volume(labels, here)


def _compare(notes: _Notes, check: Check, error: FedsamError, found: Geometry, expected: Geometry, thorough: bool) -> None:
    """Notes two grids that differ: an error beyond ``SAME_GRID_MM``, a warning of the full report beyond ``EXACT_GRID_MM``."""
    if found.same_grid(expected, EXACT_GRID_MM):
        return
    if not found.same_grid(expected, SAME_GRID_MM):
        notes.error(check, error, fixable=rounded(found, expected))
    elif thorough:
        slight = FedsamError(
            "headers of one case differ slightly",
            path=error.path,
            found=error.found,
            expected=f"corners within {EXACT_GRID_MM} mm; up to {SAME_GRID_MM} mm passes",
            fix="copy the image's header",
        )
        notes.warn(check, slight, fixable=True)


def _misplaced(case: str, path: Path, image_path: Path, found: Geometry, expected: Geometry) -> FedsamError:
    if found.size != expected.size:
        return FedsamError(
            f"image and mask of {case} differ in shape",
            path=path,
            found=f"{found.size} voxels (z, y, x) in the mask",
            expected=f"{expected.size}, as in {image_path.name}",
            fix="put the mask on the image's grid, or leave the case out",
        )
    return FedsamError(
        f"image and mask of {case} lie in different places (spacing, origin or direction)",
        path=path,
        found=describe_difference(found, expected),
        expected=f"the grid of {image_path.name}, within {SAME_GRID_MM} mm",
        fix="put the mask on the image's grid; where only the mask's header is wrong, copy the image's header",
    )


def _value_errors(dataset: RawDataset, case: str, site: str, path: Path, values: set[int]) -> list[FedsamError]:
    """Every value must be a class of the dataset, one that the case's site annotated, or the ignore label."""
    errors = []
    names = {value: name for name, value in dataset.labels.items()}
    if dataset.ignore_label is not None:
        names[dataset.ignore_label] = IGNORE_NAME
    if unknown := sorted(values - names.keys()):
        errors.append(
            FedsamError(
                f"the mask of {case} holds values that dataset.json does not name",
                path=path,
                found=f"label value {', '.join(str(value) for value in unknown[:10])}",
                expected=", ".join(f"{value} ({name})" for value, name in names.items()),
                fix="correct the mask, add the class to labels in dataset.json, or map the site's own values in site.toml",
            )
        )
    if site not in dataset.site_labels:
        return errors
    annotated = dataset.label_scheme.values_of(dataset.site_labels[site])
    if foreign := sorted((values & names.keys()) - {0, dataset.ignore_label, *annotated}):
        errors.append(
            FedsamError(
                f"the mask of {case} holds classes that its site says it did not annotate",
                path=path,
                found=", ".join(f"label value {value} ({names[value]})" for value in foreign),
                expected=f"site_labels of {site}: {', '.join(dataset.site_labels[site])}",
                fix=f"add the class to site_labels of {site} where all its cases have it, or set these voxels to background or ignore",
            )
        )
    return errors


def _note_unusual_mask(notes: _Notes, path: Path, image: Any, values: set[int]) -> None:
    if not values - {0}:
        error = FedsamError(
            "a mask is empty",
            path=path,
            found="background only",
            expected="at least one voxel of a class, unless the patient has none",
            fix="check that this is the right file; if the patient has none of the classes, leave it as it is",
        )
        notes.warn(Check.MASK_EMPTY, error)
    if sitk.GetArrayViewFromImage(image).dtype.kind == "f":
        error = FedsamError(
            "a mask is stored as floating-point numbers",
            path=path,
            found=f"{image.GetPixelIDTypeAsString()}, whole values only",
            expected="an integer type",
            fix="store it as uint8; it is read as whole numbers anyway",
        )
        notes.warn(Check.MASK_TYPE, error, fixable=True)


def _unplaced(array: NDArray[np.float32] | None) -> Geometry | None:
    """A stand-in grid for voxels whose place is not known, so that they can still be compared with others."""
    if array is None:
        return None
    z, y, x = array.shape[1:]
    return Geometry((z, y, x), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def _hash(channel: NDArray[np.float32]) -> str:
    digest = hashlib.sha256(str(channel.shape).encode())
    digest.update(np.ascontiguousarray(channel).data)
    return digest.hexdigest()
