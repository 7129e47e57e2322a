"""A mask as a DICOM Segmentation object: binary frames of one bit a pixel, on the very slices of the series that was segmented.

Standard: PS3.3 A.51 and C.8.20, Segmentation IOD. The object is made by highdicom (Bridge et al., J Digit Imaging 2022, 35:1719), which is
installed by an extra of this package only.

Frames take position, orientation and pixel spacing from the slices they were drawn on, and each refers to its slice by SOP instance UID:
nothing is resampled or moved. Planes in which a segment has no pixel have no frame; a segment without any pixel is described all the same.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.class_colours import class_colour
from fedsam_pipeline.dataset.dicom import dicom_files
from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path

ENDING = ".dcm"
INSTALL = "pip install fedsam-pipeline[dicom]"
AS_NIFTI = "write the mask as NIfTI: end -o with .nii.gz, and leave out --dicom_seg"
LABEL_LENGTH = 64
"""letters of a segment's label, value representation LO"""
UTF_8 = "ISO_IR 192"
_NEEDED = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPClassUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
)
"""without these a frame cannot be tied to its slice"""
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""type 2: every object has them, with or without a value; series that were made anonymous often lack them"""


@dataclass(frozen=True)
class Algorithm:
    """What made a mask, for the object's equipment and algorithm identification."""

    name: str
    version: str
    serial_number: str
    """tells one trained model from another, at most 64 letters"""
    parameters: Mapping[str, str]


def require_highdicom() -> None:
    """Raises ``FedsamError`` where the extra is not installed."""
    _module("highdicom")
    _module("pydicom")


def check_segment_names(names: Sequence[str]) -> None:
    """Raises ``FedsamError`` for names that no segment label can hold: too long, empty, or with a backslash or control character."""
    bad = [name for name in names if not name.strip() or len(name) > LABEL_LENGTH or "\\" in name or not name.isprintable()]
    if bad:
        raise FedsamError(
            "class names cannot be labels of DICOM segments",
            found=", ".join(map(repr, bad)),
            expected=f"1 to {LABEL_LENGTH} printable letters without a backslash",
            fix=AS_NIFTI,
        )


def check_series(folder: Path) -> None:
    """Looks at the first slice for the tags that a DICOM Segmentation needs beyond those of ``read_series``.

    Raises:
        FedsamError: a tag is missing, or the extra is not installed.
    """
    first = next(dicom_files(folder), None)
    if first is not None:  # else reading the series says so
        _read_header(first)


def write_segmentation(
    path: Path,
    mask: NDArray[np.unsignedinteger],
    geometry: Geometry,
    series: Sequence[Path],
    segments: Mapping[str, tuple[int, ...]],
    algorithm: Algorithm,
    *,
    description: str,
) -> None:
    """Writes a mask as a DICOM Segmentation, atomically.

    In memory are the headers of all slices, the frames, and for segments that overlap or leave values out one byte a voxel and segment.

    Args:
        path: the file.
        mask: class numbers, (Z, Y, X), as ``read_series`` stacks the slices.
        geometry: the grid of the mask, that of ``series[0]``.
        series: folders of the image's channels; the frames lie on the slices of the first. The others are referred to as sources where
            they belong to the same study.
        segments: label to the values of the mask that are this segment, in the order of their numbers 1, 2, ...
        algorithm: what made the mask.
        description: of the new series.

    Raises:
        FedsamError: the extra is not installed, the series is no longer the one that was read, its tags or the segments' names do not
            make a DICOM Segmentation, or the folder cannot be written to.
    """
    if mask.shape != geometry.size:
        raise ValueError(f"mask {mask.shape} does not fit a grid of {geometry.size} voxels")
    highdicom = _module("highdicom")
    check_segment_names(list(segments))
    slices = _slices(series[0], geometry)
    others = [header for folder in series[1:] for header in _headers(folder)]
    with atomic_path(path) as temporary:
        try:
            segmentation = highdicom.seg.Segmentation(
                source_images=slices,
                pixel_array=_pixels(mask, segments),
                segmentation_type="BINARY",
                segment_descriptions=_descriptions(segments, algorithm),
                series_instance_uid=highdicom.UID(),
                series_number=1000 + int(slices[0].get("SeriesNumber") or 0),
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=algorithm.name,
                manufacturer_model_name=algorithm.name,
                software_versions=algorithm.version,
                device_serial_number=algorithm.serial_number,
                content_label="SEGMENTATION",
                content_description=description[:LABEL_LENGTH],
                series_description=description[:LABEL_LENGTH],
                specific_character_set=UTF_8,
                further_source_images=[header for header in others if header.StudyInstanceUID == slices[0].StudyInstanceUID],
            )
            segmentation.ContentCreatorName = None  # type 2: nobody drew it
            segmentation.save_as(temporary)
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # how highdicom and pydicom refuse a tag
            raise FedsamError(
                "no DICOM Segmentation can be made of a series",
                path=series[0],
                found=f"{type(error).__name__}: {error}",
                expected="tags as the DICOM standard has them",
                fix=f"export the series again, or {AS_NIFTI}",
            ) from error


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FedsamError(
            "DICOM Segmentations need an extra that is not installed", found=str(error), expected="highdicom and pydicom", fix=INSTALL
        ) from error


def _pixels(mask: NDArray[np.unsignedinteger], segments: Mapping[str, tuple[int, ...]]) -> NDArray[Any]:
    """The mask itself where its values are the segments' numbers, else a stack (Z, Y, X, segment)."""
    if list(segments.values()) == [(number,) for number in range(1, len(segments) + 1)]:
        return mask
    return np.stack([np.isin(mask, values) for values in segments.values()], axis=-1)


def _descriptions(segments: Mapping[str, tuple[int, ...]], algorithm: Algorithm) -> list[Any]:
    """A data set names its classes and has no codes for them: category and type are the general "Tissue", the label is the name."""
    highdicom, codes = _module("highdicom"), _module("pydicom.sr.codedict").codes
    identification = highdicom.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=codes.DCM.ArtificialIntelligence,
        version=algorithm.version,
        parameters=dict(algorithm.parameters),
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="AUTOMATIC",
            algorithm_identification=identification,
            display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * part) for part in class_colour(number))),
        )
        for number, name in enumerate(segments, start=1)
    ]


def _slices(folder: Path, geometry: Geometry) -> list[Any]:
    """The headers of the slices in the order of the mask's planes.

    Raises:
        FedsamError: they are not the slices of the mask.
    """
    headers = list(_headers(folder))
    matrix = np.asarray(geometry.direction).reshape(3, 3)
    along = [float((np.asarray(each.ImagePositionPatient, dtype=float) - geometry.origin) @ matrix[:, 2]) for each in headers]
    planes = np.argsort(along, kind="stable")
    expected = geometry.spacing[0] * np.arange(geometry.size[0])
    fits = (
        len(headers) == geometry.size[0]
        and all((each.Rows, each.Columns) == geometry.size[1:] for each in headers)
        and np.abs(np.asarray(along)[planes] - expected).max() < geometry.spacing[0] / 2
    )
    if not fits:
        raise FedsamError(
            "a series changed while its mask was predicted",
            path=folder,
            found=f"{len(headers)} slices that do not lie where those of the image lay",
            expected=f"{geometry.size[0]} slices of {geometry.size[1]} x {geometry.size[2]} pixels",
            fix="predict it again",
        )
    for header in headers:  # in memory only
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient  # equal but for the last digits
        header.SpacingBetweenSlices = f"{geometry.spacing[0]:.9g}"  # what stands there may be the gap, or the thickness
        if not header.get("SliceThickness"):
            header.SliceThickness = header.SpacingBetweenSlices
    return [headers[index] for index in planes]


def _headers(folder: Path) -> Iterator[Any]:
    return (_read_header(path) for path in sorted(dicom_files(folder)))


def _read_header(path: Path) -> Any:
    """All tags but the pixels, those of type 2 filled up with nothing; ``FedsamError`` where one is missing that must have a value."""
    header = _module("pydicom").dcmread(path, stop_before_pixels=True, force=True)
    missing = [name for name in _NEEDED if header.get(name) in (None, "")]
    if missing:
        raise FedsamError(
            "a DICOM series lacks tags that a DICOM Segmentation needs",
            path=path,
            found=f"no {', '.join(missing)}",
            expected="slices as the scanner or the archive exports them",
            fix=f"export the original series, or {AS_NIFTI}",
        )
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, None)
    return header
