"""``--fix``: the safe mendings, applied to a copy of a raw dataset.

Safe means: no voxel changes its value, and no voxel moves by more than the rounding or the slight skew that is mended. Masks that a fix
touches keep every value. All else is left as it is; the report of the copy names it.
"""

import gzip
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from tqdm import tqdm

from fedsam_pipeline.dataset import nifti_header
from fedsam_pipeline.dataset.findings import Check, Finding
from fedsam_pipeline.dataset.image_files import geometry_of, inspect_file, read_file, write_file
from fedsam_pipeline.dataset.integrity import rounded
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.raw_checks import channel_path
from fedsam_pipeline.dataset.staging import staged_folder
from fedsam_pipeline.dataset.straighten import stored_geometry, straighten_nifti, straightened
from fedsam_pipeline.dataset.volume import Geometry
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json, write_bytes, write_json
from fedsam_pipeline.paths import DATASET_PATTERN

sitk: Any = SimpleITK  # it ships without types
FIXES_FILE = "fixes.json"
IMAGE_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


@dataclass(frozen=True)
class Mended:
    """What was done to one file of the copy; ``path`` starts at the copy's folder."""

    case: str
    path: str
    fixes: tuple[str, ...]


@dataclass(frozen=True)
class _CaseFiles:
    """The files of one case in the copy, with what is to be mended in each. ``images``: first the federation's channel 0."""

    case: str
    images: tuple[tuple[Path, frozenset[Check]], ...]
    mask: tuple[Path, frozenset[Check]] | None


def copy_folder(dataset: RawDataset, number: int | None) -> Path:
    """Where the copy goes: beside the dataset, ``Dataset<number>_<Name>_fixed``.

    Args:
        dataset: the dataset.
        number: of the copy; ``None`` takes the first free one above the dataset's.

    Raises:
        FedsamError: the number is taken, or none is free.
    """
    root = dataset.folder.absolute().parent
    taken = {int(match[1]): folder.name for folder in root.iterdir() if (match := DATASET_PATTERN.match(folder.name))}
    own = DATASET_PATTERN.match(dataset.name)
    assert own is not None  # load_raw_dataset looked
    free = next((other for other in range(int(own[1]) + 1, 1000) if other not in taken), None) if number is None else number
    if free is None or free in taken or not 0 <= free <= 999:
        raise FedsamError(
            "the fixed copy cannot have this number",
            path=root,
            found="no free number" if free is None else f"{free}: {taken.get(free, 'more than three digits')}",
            expected="a number from 0 to 999 that no dataset has",
            fix="choose another with -o",
        )
    return root / f"Dataset{free:03d}_{own[2]}_fixed"


def write_fixed_copy(dataset: RawDataset, folder: Path, findings: Iterable[Finding], *, progress: bool = False) -> list[Mended]:
    """Copies a dataset and mends the fixable findings in the copy, which appears complete or not at all; the dataset is not touched.

    An explicit ``dataset`` map of ``dataset.json`` becomes plain ``imagesTr`` and ``labelsTr``.

    Args:
        dataset: the dataset.
        folder: a new one, see ``copy_folder``.
        findings: of the full report.
        progress: show a progress bar on a terminal.

    Returns:
        What was done, also written to ``fixes.json`` in the copy.

    Raises:
        FedsamError: the folder exists, or cannot be written to.
    """
    wanted: dict[str, set[Check]] = defaultdict(set)
    for finding in findings:
        if finding.fixable and finding.path is not None and finding.check is not None:
            wanted[finding.path].add(finding.check)
    checks = {path: frozenset(found) for path, found in wanted.items()}
    mended: list[Mended] = []
    with staged_folder(folder) as staging:
        _copy_files(dataset, staging)
        for files in tqdm(list(_cases(dataset, staging, checks)), desc="fixing", unit="case", disable=None if progress else True):
            for path, fixes in _mend_case(files):
                mended.append(Mended(files.case, path.relative_to(staging).as_posix(), tuple(fixes)))
        entries = [{"case": entry.case, "path": entry.path, "fixes": list(entry.fixes)} for entry in mended]
        write_json(staging / FIXES_FILE, {"schema_version": 1, "copy_of": dataset.name, "fixes": entries})
    return mended


def _copy_files(dataset: RawDataset, target: Path) -> None:
    for source in sorted(dataset.folder.iterdir()):
        if source.is_file() and not source.name.startswith("."):
            shutil.copyfile(source, target / source.name)
        elif source.is_dir() and source.name in IMAGE_FOLDERS and not (dataset.explicit_files and source.name in ("imagesTr", "labelsTr")):
            shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns(".*"), copy_function=shutil.copyfile)
    if not dataset.explicit_files:
        return
    content = read_json(dataset.folder / "dataset.json")
    del content["dataset"]
    write_json(target / "dataset.json", content)
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir()
    for case, files in dataset.explicit_files.items():
        for number, image in enumerate(files.images):
            _copy_image(image, target / "imagesTr" / f"{case}_{number:04d}{dataset.file_ending}")
        _copy_image(files.label, target / "labelsTr" / f"{case}{dataset.file_ending}")


def _copy_image(source: Path, target: Path) -> None:
    """Byte for byte, unless the format changes or an ``.mhd`` would leave its data behind."""
    same = source.name.lower().endswith(target.suffix) and source.name.lower().endswith(".gz") == target.name.endswith(".gz")
    if same and target.suffix != ".mhd":
        shutil.copyfile(source, target)
        return
    image = read_file(source)
    write_file(target, sitk.GetArrayViewFromImage(image), geometry_of(image))


def _cases(dataset: RawDataset, copy: Path, checks: dict[str, frozenset[Check]]) -> Iterator[_CaseFiles]:
    """Cases with something to mend."""
    ending, numbers, none = dataset.file_ending, dataset.mapping.channel_files, frozenset[Check]()
    for test, cases in ((False, dataset.cases), (True, dataset.test_cases)):
        images, masks = ("imagesTs", "labelsTs") if test else ("imagesTr", "labelsTr")
        for case in cases:
            originals = dataset.test_image_paths(case) if test else dataset.image_paths(case)
            original = dataset.folder / "labelsTs" / f"{case}{ending}" if test else dataset.label_path(case)
            files = tuple(
                (channel_path(copy / images, f"{case}_{number:04d}", ending), checks.get(str(path), none))
                for number, path in zip(numbers, originals, strict=True)
            )
            mask = (copy / masks / f"{case}{ending}", checks.get(str(original), none)) if original.is_file() else None
            if any(found for _, found in files) or (mask is not None and mask[1]):
                yield _CaseFiles(case, files, mask)


def _mend_case(files: _CaseFiles) -> Iterator[tuple[Path, list[str]]]:
    """Mends the files of a case in the copy, channel 0 first: the others take its header."""
    first = files.images[0][0]
    moved = any(Check.STRAIGHT in checks for _, checks in files.images)
    for path, checks in files.images:
        fixes = _mend(path, checks, None if path == first else first, moved=moved, mask=False)
        if fixes:
            yield path, fixes
    if files.mask is not None:
        path, checks = files.mask
        if fixes := _mend(path, checks, first, moved=moved, mask=True):
            yield path, fixes


def _mend(path: Path, checks: frozenset[Check], first: Path | None, *, moved: bool, mask: bool) -> list[str]:
    """Mends one file in place (of the copy); what was done, in words.

    Args:
        path: the file.
        checks: fixable checks that it failed.
        first: the case's first channel, mended already, whose header this file may take; ``None`` for that channel itself.
        moved: whether a channel of the case was put straight, so that grids must be compared anew.
        mask: whether it is a mask.
    """
    fixes: list[str] = []
    if path.is_dir():  # a DICOM series is copied as it is
        return fixes
    if Check.STRAIGHT in checks:
        fixes.append(_straighten(path))
    if not checks - {Check.STRAIGHT} and not (moved and first is not None):
        return fixes
    inspection = inspect_file(path)
    if inspection.faults:  # a file that could not be read before its axes were straight may have more
        return fixes
    array: NDArray[Any] = sitk.GetArrayFromImage(inspection.image)
    grid, like = geometry_of(inspection.image), path
    if first is not None and (moved or checks & {Check.MASK_GRID, Check.CHANNEL_GRID}) and not inspect_file(first).faults:
        expected = geometry_of(read_file(first))
        if grid != expected and rounded(grid, expected):
            fixes.append(f"header taken from {first.name}: corners were up to {grid.corner_distance(expected):.4g} mm off")
            grid, like = expected, first
    if Check.ONE_FRAME in checks:
        fixes.append("fourth axis of length 1 removed")
    if mask and Check.MASK_TYPE in checks:
        number_type = next(kind for kind in (np.uint8, np.int16) if np.iinfo(kind).min <= array.min() and array.max() <= np.iinfo(kind).max)
        fixes.append(f"stored as {np.dtype(number_type).name} instead of {array.dtype.name}")
        array = array.astype(number_type)
    if len(fixes) > (Check.STRAIGHT in checks):
        write_file(path, array, grid, like)
    return fixes


def _straighten(path: Path) -> str:
    """Puts a file's axes at right angles."""
    skewed = stored_geometry(path)
    straight: Geometry | None = None if skewed is None else straightened(skewed)
    assert skewed is not None and straight is not None  # the finding was fixable
    if nifti_header.is_nifti(path):
        content = nifti_header.read_content(path)
        straighten_nifti(content, straight)
        write_bytes(path, gzip.compress(bytes(content), compresslevel=6, mtime=0) if path.suffix == ".gz" else bytes(content))
    else:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        write_file(path, array[0] if array.ndim == 4 else array, straight)
    return f"axes put at right angles: corners moved by up to {skewed.corner_distance(straight):.4g} mm"
