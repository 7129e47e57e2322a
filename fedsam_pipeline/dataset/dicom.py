"""A DICOM series as one 3D image: a folder that holds its slices, one file each.

GDCM, through SimpleITK, decodes the files and applies rescale slope and intercept, slice by slice: CT comes out in HU. What SimpleITK's
series reader passes over in silence is checked here, from the tags of every slice (DICOM PS3.3, C.7.6.2 Image Plane, C.11.1 Modality
LUT): missing slices, uneven distances, a tilted gantry, several series or time points in one folder.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from fedsam_pipeline.dataset.findings import Check
from fedsam_pipeline.dataset.geometry import numbers_text
from fedsam_pipeline.errors import FedsamError

sitk: Any = SimpleITK  # it ships without types

SUFFIXES = (".dcm", ".ima", ".dicom")
INDEX_FILE = "DICOMDIR"
"""the table of contents of a DICOM disc: no slice"""
SAME_DIRECTION = 1e-4
"""how far the direction cosines of two slices of a series may differ; they are written with at least six digits"""
SAME_PLACE_MM = 0.01
"""slices nearer than this lie in the same place"""
POSITION_SHARE = 0.1
"""slices may lie off an even grid by this share of their distance, off a straight line by this share of a pixel (rounding)"""
TILT = 1e-3
"""how far the line through the slices' corners may lean: sideways mm a mm, as ``image_files.SKEW_TOLERANCE``"""
SHOWN = 5

Fault = tuple[Check, FedsamError]


@dataclass(frozen=True)
class Slice:
    """What the tags of one file say."""

    path: Path
    series: str
    words: str
    """modality and description, for messages"""
    size: tuple[int, int]
    """pixels, (rows, columns)"""
    frames: int
    components: int
    spacing: tuple[float, float]
    """mm, (y, x)"""
    position: NDArray[np.float64] | None
    """centre of the first pixel, LPS, mm; ``None`` where the tag is missing"""
    rows_columns: NDArray[np.float64]
    """(2, 3): unit vectors along which x and y grow, LPS"""


@dataclass(frozen=True)
class Series:
    """The image of a folder, or ``None`` with every reason against it."""

    image: Any | None
    faults: tuple[Fault, ...]


def is_series_folder(path: Path) -> bool:
    """Whether a path is a folder with at least one DICOM file in it."""
    return path.is_dir() and next(dicom_files(path), None) is not None


def stored_files(path: Path) -> list[Path]:
    """The files that an image consists of: itself, or all visible files of its folder, sorted."""
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")) if path.is_dir() else [path]


def series_voxels(folder: Path) -> int:
    """Voxels of a series, from the number of its files and the tags of the first; 0 where that one cannot be read."""
    files = list(dicom_files(folder))
    try:
        return len(files) * math.prod(_read_tags(files[0]).size) if files else 0
    except FedsamError:  # reading the series, which comes next, says what is wrong with the file
        return 0


def read_series(folder: Path) -> Series:
    """Reads the one series of a folder; files that are no DICOM files (by their first bytes and ending) are passed over.

    Returns:
        A 3D ``SimpleITK.Image``, float32, in the patient frame that the tags give (LPS); slices in the order of their positions. Faults:
        no series or several, unreadable files, colour, several frames in a file, a single slice, slices of different size, spacing or
        orientation, without a position, in the same place, missing, unevenly spaced, or leaning (gantry tilt). All distances in mm.
    """
    slices: list[Slice] = []
    broken: list[Fault] = []
    for path in sorted(dicom_files(folder)):
        try:
            slices.append(_read_tags(path))
        except FedsamError as error:
            broken.append((Check.READABLE, error))
    if len(broken) > SHOWN:
        more = FedsamError("more files cannot be read as DICOM images", path=folder, found=f"{len(broken)} of {len(slices) + len(broken)}")
        broken = [*broken[:SHOWN], (Check.READABLE, more)]
    faults = broken or list(_series_faults(folder, slices)) or list(_plane_faults(folder, slices)) or list(_place_faults(folder, slices))
    if faults:
        return Series(None, tuple(faults))
    try:
        return Series(_assemble(slices), ())
    except RuntimeError as error:
        reason = FedsamError("a DICOM series cannot be read", path=folder, found=_reason(error), fix="export the series again")
        return Series(None, ((Check.READABLE, reason),))


def dicom_files(folder: Path) -> Iterator[Path]:
    """The DICOM files of a folder, known by their ending or first bytes."""
    for path in stored_files(folder):
        if path.name == INDEX_FILE:
            continue
        if path.suffix.lower() in SUFFIXES:
            yield path
            continue
        with open(path, "rb") as stream:
            start = stream.read(132)
        if start[128:] == b"DICM":
            yield path


def _read_tags(path: Path) -> Slice:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise FedsamError(
            "a file cannot be read as a DICOM image",
            path=path,
            found=_reason(error),
            expected="a slice of the series",
            fix="remove it from the folder if it is no slice (a report, a presentation state); else copy or export it again",
        ) from error
    tags = {key: str(reader.GetMetaData(key)).strip() for key in reader.GetMetaDataKeys()}
    frames = tags.get("0028|0008") or "1"
    if not frames.isdecimal():
        raise FedsamError(
            "a DICOM file does not say how many frames it holds",
            path=path,
            found=f"number of frames {frames!r}",
            expected="a whole number, or none",
            fix="export the series again",
        )
    columns, rows = reader.GetSize()[:2]
    dx, dy = reader.GetSpacing()[:2]
    direction = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(reader.GetDimension(), -1)
    axes = direction.T[:2, :3] if direction.shape == (3, 3) else np.eye(3)[:2]
    placed = {"0020|0032", "0020|0037"} <= tags.keys()
    return Slice(
        path=path,
        series=tags.get("0020|000e", ""),
        words=" ".join(word for word in (tags.get("0008|0060"), tags.get("0008|103e")) if word) or "no description",
        size=(int(rows), int(columns)),
        frames=int(frames),
        components=int(reader.GetNumberOfComponents()),
        spacing=(float(dy), float(dx)),
        position=np.asarray(reader.GetOrigin()[:3], dtype=np.float64) if placed else None,
        rows_columns=axes,
    )


def _series_faults(folder: Path, slices: Sequence[Slice]) -> Iterator[Fault]:
    """One series there must be."""
    series: dict[str, list[Slice]] = defaultdict(list)
    for each in slices:
        series[each.series].append(each)
    if not series:
        error = FedsamError(
            "a folder holds no DICOM slices",
            path=folder,
            found=", ".join(file.name for file in stored_files(folder)[:SHOWN]) or "no files",
            expected="the slices of one series, one file each",
            fix="point to the folder that holds the files themselves",
        )
        yield Check.READABLE, error
    if len(series) > 1:
        listed = [
            f"{uid or 'no UID'}: {len(members)} files, {members[0].words}, such as {members[0].path.name}"
            for uid, members in series.items()
        ]
        error = FedsamError(
            f"a folder holds {len(series)} DICOM series",
            path=folder,
            found="\n    ".join(["", *listed]),
            expected="the slices of one series",
            fix="move the files of the series you want into a folder of their own",
        )
        yield Check.READABLE, error


def _plane_faults(folder: Path, slices: Sequence[Slice]) -> Iterator[Fault]:
    """Each file must be one grey slice with a place, all of them alike."""
    if several := [each for each in slices if each.frames > 1]:
        error = FedsamError(
            "a DICOM file holds several frames",
            path=several[0].path,
            found=f"{several[0].frames} frames in a file (enhanced or multi-frame DICOM)",
            expected="one slice a file",
            fix="convert the series to NIfTI, with dcm2niix for example",
        )
        yield Check.SCALAR_3D, error
        return
    if coloured := [each for each in slices if each.components != 1]:
        error = FedsamError(
            "a DICOM slice has pixels that are not single numbers",
            path=coloured[0].path,
            found=f"{coloured[0].components} components a pixel in {len(coloured)} of {len(slices)} files",
            expected="grey values",
            fix="export the original series, not a colour picture of it",
        )
        yield Check.SCALAR_3D, error
    if homeless := [each for each in slices if each.position is None]:
        error = FedsamError(
            "DICOM slices do not say where they lie",
            path=folder,
            found=f"no image position or orientation in {_named(homeless)}",
            expected="both tags in every slice",
            fix="export the original series, not a picture of it",
        )
        yield Check.READABLE, error
    if len(slices) == 1:
        error = FedsamError(
            "a DICOM series has a single slice", path=folder, found=slices[0].path.name, expected="a volume", fix="export all slices"
        )
        yield Check.SCALAR_3D, error
    first = slices[0]
    if odd := [each for each in slices if each.size != first.size or not np.allclose(each.spacing, first.spacing, rtol=1e-4)]:
        error = FedsamError(
            "the slices of a series differ in size or pixel spacing",
            path=folder,
            found=f"{_pixels(odd[0])} in {_named(odd)}",
            expected=f"{_pixels(first)}, as in {first.path.name}",
            fix="move slices that are no part of the volume (a scout, a summary) out of the folder",
        )
        yield Check.READABLE, error
    if turned := [each for each in slices if np.abs(each.rows_columns - first.rows_columns).max() > SAME_DIRECTION]:
        error = FedsamError(
            "the slices of a series lie in different directions",
            path=folder,
            found=f"direction {numbers_text(turned[0].rows_columns.ravel())} in {_named(turned)}",
            expected=f"{numbers_text(first.rows_columns.ravel())}, as in {first.path.name}",
            fix="move slices that are no part of the volume (a scout) out of the folder",
        )
        yield Check.STRAIGHT, error


def _place_faults(folder: Path, slices: Sequence[Slice]) -> Iterator[Fault]:
    """The slices must lie one behind the other, in equal steps."""
    ordered, along, aside = _in_order(slices)
    steps = np.diff(along)
    if np.any(same := steps < SAME_PLACE_MM):
        index = int(np.argmax(same))
        error = FedsamError(
            "slices of a series lie in the same place",
            path=folder,
            found=f"{int(same.sum())} times less than {SAME_PLACE_MM} mm apart, such as {_pair(ordered, index)}",
            expected="one slice a place",
            fix="keep one time point, echo or reconstruction in the folder, and no file twice",
        )
        yield Check.READABLE, error
        return
    typical = float(np.median(steps))
    if np.any(gaps := steps > 1.5 * typical):
        index = int(np.argmax(gaps))
        missing = int((np.round(steps[gaps] / typical) - 1).sum())
        error = FedsamError(
            "a series lacks slices",
            path=folder,
            found=f"about {missing} missing in {int(gaps.sum())} gaps, such as {steps[index]:.4g} mm between {_pair(ordered, index)}",
            expected=f"a slice every {typical:.4g} mm, as elsewhere",
            fix="export the whole series again",
        )
        yield Check.READABLE, error
        return
    start, step = _even_grid(along)
    off = np.abs(along - (start + step * np.arange(len(along))))
    if off.max() > POSITION_SHARE * typical:
        error = FedsamError(
            "the slices of a series are not equally spaced",
            path=folder,
            found=f"steps of {steps.min():.4g} to {steps.max():.4g} mm; {ordered[int(np.argmax(off))].path.name} is {off.max():.4g} mm off",
            expected=f"every slice within {POSITION_SHARE * typical:.4g} mm of an even grid",
            fix="export the whole series again, or resample it onto an even grid and store it as NIfTI",
        )
        yield Check.READABLE, error
    lean = float(np.linalg.norm(aside, axis=1).max())
    if lean > max(TILT * float(along[-1] - along[0]), POSITION_SHARE * min(ordered[0].spacing)):
        error = FedsamError(
            "the slices of a series are shifted against each other (a tilted gantry)",
            path=folder,
            found=f"up to {lean:.4g} mm sideways over {along[-1] - along[0]:.4g} mm",
            expected="each slice straight behind the one before",
            fix="resample the series onto a straight grid (gantry-tilt correction, as dcm2niix does) and store it as NIfTI",
        )
        yield Check.STRAIGHT, error


def _in_order(slices: Sequence[Slice]) -> tuple[list[Slice], NDArray[np.float64], NDArray[np.float64]]:
    """The slices by position along their normal; that position, (N,) mm; and how far each lies beside the first one's normal, (N, 3) mm."""
    normal = _normal(slices[0])
    positions = np.array([each.position for each in slices], dtype=np.float64)
    order = np.argsort(positions @ normal, kind="stable")
    relative = positions[order] - positions[order[0]]
    along = relative @ normal
    return [slices[index] for index in order], along, relative - np.outer(along, normal)


def _even_grid(along: NDArray[np.float64]) -> tuple[float, float]:
    """First position and distance of the even grid nearest to the slices (least squares), mm."""
    step, start = np.polyfit(np.arange(len(along)), along, 1)
    return float(start), float(step)


def _normal(of: Slice) -> NDArray[np.float64]:
    """Unit vector that completes the two in-plane ones to a right-handed frame."""
    normal: NDArray[np.float64] = np.cross(of.rows_columns[0], of.rows_columns[1])
    length = float(np.linalg.norm(normal))
    return normal / length if length > 0 else np.array([0.0, 0.0, 1.0])


def _assemble(slices: Sequence[Slice]) -> Any:
    """Reads the pixels of slices that were checked, and places them."""
    ordered, along, _ = _in_order(slices)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(each.path) for each in ordered])
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)  # slopes may differ from slice to slice: the type that fits the first need not fit all
    image = reader.Execute()
    first = ordered[0]
    assert first.position is not None  # checked
    start, step = _even_grid(along)
    image.SetSpacing((first.spacing[1], first.spacing[0], step))
    image.SetOrigin((first.position + start * _normal(first)).tolist())
    image.SetDirection(np.stack([*first.rows_columns, _normal(first)], axis=1).ravel().tolist())
    return image


def _named(slices: Sequence[Slice]) -> str:
    names = ", ".join(each.path.name for each in slices[:SHOWN])
    return f"{len(slices)} files: {names}{', ...' if len(slices) > SHOWN else ''}"


def _pair(ordered: Sequence[Slice], index: int) -> str:
    return f"{ordered[index].path.name} and {ordered[index + 1].path.name}"


def _pixels(of: Slice) -> str:
    return f"{of.size[0]} x {of.size[1]} pixels of {of.spacing[0]:.4g} x {of.spacing[1]:.4g} mm"


def _reason(error: RuntimeError) -> str:
    """The last line of ITK's message, without its address."""
    return str(error).strip().splitlines()[-1].split("): ")[-1]
