"""Image files of the formats we read and write, and every reason to refuse one."""

import gzip
import math
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from fedsam_pipeline.dataset import nifti_header
from fedsam_pipeline.dataset.dicom import read_series
from fedsam_pipeline.dataset.findings import Check
from fedsam_pipeline.dataset.geometry import Geometry, numbers_text
from fedsam_pipeline.dataset.nrrd_segments import segment_tags
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path

sitk: Any = SimpleITK  # it ships without types
SKEW_TOLERANCE = 1e-3
"""how far the axes' dot products may be from those of perpendicular unit vectors"""
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def split_file_ending(name: str) -> tuple[str, str] | None:
    """``("case_0000", ".nii.gz")`` of a file name, or ``None`` where it is no image we read."""
    for ending in FILE_ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return None


@dataclass(frozen=True)
class Fault:
    """One reason to refuse a file, and the check that it fails."""

    check: Check
    error: FedsamError


@dataclass(frozen=True)
class Inspection:
    """One file with every fault that could be seen.

    Args:
        faults: in the order in which ``read_file`` would raise them.
        image: the scalar 3D ``SimpleITK.Image``, or ``None`` where it cannot be had; voxels that are not finite may read as 0.
        straight: whether the image's geometry can be trusted; ``False`` for axes that are not at right angles.
        spare_axis: whether the file has a fourth axis, of length 1, that ``image`` lacks.
    """

    faults: tuple[Fault, ...]
    image: Any | None
    straight: bool
    spare_axis: bool


def inspect_file(path: Path) -> Inspection:
    """Reads one image and collects its faults instead of raising the first."""
    image, faults = _open(path, max_channels=1)
    if image is None:
        return Inspection(tuple(faults), None, False, False)
    spare_axis = image.GetDimension() == 4 or _has_spare_axis(path)
    image = _without_fourth_axis(image, 0)
    if not any(fault.check is Check.STRAIGHT for fault in faults):
        faults += _skew_of(image, path)
    return Inspection(tuple(faults), image, not any(fault.check is Check.STRAIGHT for fault in faults), spare_axis)


def read_file(path: Path) -> Any:
    """One scalar, straight 3D image, as a ``SimpleITK.Image``.

    Raises:
        FedsamError: missing, empty, unreadable, unknown ending, not 3D (a fourth axis of size 1 is dropped), more than one number a pixel,
            or skewed axes.
    """
    inspection = inspect_file(path)
    for fault in inspection.faults:
        raise fault.error
    return inspection.image


def voxels_of(path: Path) -> int | None:
    """Voxels of an image file, from its header; ``None`` for a folder of slices, and where the header cannot be read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    return int(math.prod(reader.GetSize()))


def read_channels(path: Path) -> list[Any]:
    """The channels of a 3D image, or of a 4D one whose last axis is the channel; errors as ``read_file``."""
    image, faults = _open(path, max_channels=None)
    number = image.GetSize()[3] if image is not None and image.GetDimension() == 4 else 1
    channels = [] if image is None else [_without_fourth_axis(image, channel) for channel in range(number)]
    for fault in [*faults, *(fault for channel in channels for fault in _skew_of(channel, path))]:
        raise fault.error
    return channels


def _open(path: Path, *, max_channels: int | None) -> tuple[Any | None, list[Fault]]:
    """The image as it lies in the file, if it can be read at all, and what is wrong with it."""
    if path.is_dir():
        series = read_series(path)
        return series.image, [Fault(check, error) for check, error in series.faults]
    faults = list(_file_faults(path)) or list(_nifti_faults(path))
    if any(fault.check is Check.READABLE for fault in faults):
        return None, faults
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _quiet_itk():
            reader.ReadImageInformation()
            unusual = list(_pixel_faults(path, reader, max_channels))
            image = None if unusual else reader.Execute()
    except RuntimeError as error:
        if "orthonormal" not in str(error):
            return None, [*faults, Fault(Check.READABLE, _unreadable(path, _itk_reason(error)))]
        if not any(fault.check is Check.STRAIGHT for fault in faults):
            faults.append(Fault(Check.STRAIGHT, _skewed(path, "no orthonormal axes")))
        return None, faults
    return image, [*faults, *unusual]


def _file_faults(path: Path) -> Iterator[Fault]:
    if not path.is_file():
        yield Fault(Check.READABLE, FedsamError("an image file is missing", path=path, fix="check the name and the folder"))
    elif path.stat().st_size == 0:
        error = FedsamError("an image file is empty", path=path, found="0 bytes", fix="copy or export the file again")
        yield Fault(Check.READABLE, error)
    elif split_file_ending(path.name) is None:
        yield Fault(Check.READABLE, _unknown_ending(path))


def _has_spare_axis(path: Path) -> bool:
    """Whether a NIfTI header lists further axes of length 1, which ITK drops."""
    header = nifti_header.read_header(path) if nifti_header.is_nifti(path) else None
    return header is not None and len(header.shape) > 3


def _without_fourth_axis(image: Any, index: int) -> Any:
    """The 3D image at ``index`` of a fourth axis, if there is one."""
    if image.GetDimension() != 4:
        return image
    return sitk.Extract(
        image,
        [*image.GetSize()[:3], 0],
        [0, 0, 0, index],
        directionCollapseToStrategy=sitk.ExtractImageFilter.DIRECTIONCOLLAPSETOSUBMATRIX,
    )


def _skew_of(image: Any, path: Path) -> list[Fault]:
    if geometry_of(image).is_orthonormal(SKEW_TOLERANCE):
        return []
    return [Fault(Check.STRAIGHT, _skewed(path, f"direction {numbers_text(image.GetDirection())}"))]


def _pixel_faults(path: Path, reader: Any, max_channels: int | None) -> Iterator[Fault]:
    """Only scalar images of three axes pass, or of four axes whose last one has at most ``max_channels`` entries (``None``: any)."""
    size = reader.GetSize()
    if len(size) != 3 and not (len(size) == 4 and (max_channels is None or size[3] <= max_channels)):
        error = FedsamError(
            f"an image is {len(size)}D, not 3D",
            path=path,
            found=f"{' x '.join(str(extent) for extent in size)} voxels (x, y, z, ...)",
            expected="one 3D file a channel",
            fix="split channels or time points into one file each, CASE_0000, CASE_0001, ..."
            if len(size) > 3
            else "store the slices as one 3D image",
        )
        yield Fault(Check.SCALAR_3D, error)
    components = reader.GetNumberOfComponents()
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if components != 1 or "complex" in pixel:
        error = FedsamError(
            "an image has pixels that are not single numbers",
            path=path,
            found=f"{pixel}, {components} components a pixel (colour, vectors or complex numbers)",
            expected="one number a voxel, one file a channel",
            fix="split the components into one file each, CASE_0000, CASE_0001, ...",
        )
        yield Fault(Check.SCALAR_3D, error)


def _nifti_faults(path: Path) -> Iterator[Fault]:
    """What ITK passes over in silence: a file that was cut off, NaN (read as 0), and a skewed sform (it falls back to the qform)."""
    if not nifti_header.is_nifti(path):
        return
    try:
        header = nifti_header.read_header(path)
        bad = 0 if header is None else nifti_header.scan_voxels(path, header)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        yield Fault(Check.READABLE, _unreadable(path, str(error)))
        return
    if header is None:
        return  # ITK judges what it is
    if bad:
        yield Fault(Check.FINITE, not_finite(path, bad, math.prod(header.shape)))
    if header.sform is None:
        return
    matrix = np.asarray(header.sform, dtype=np.float64).reshape(3, 4)[:, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    straight = np.all(np.isfinite(lengths)) and np.all(lengths > 0)
    if not straight or np.abs((matrix / lengths).T @ (matrix / lengths) - np.eye(3)).max() > SKEW_TOLERANCE:
        yield Fault(Check.STRAIGHT, _skewed(path, f"sform {numbers_text(matrix.ravel().tolist())}"))


def not_finite(path: Path, bad: int, total: int) -> FedsamError:
    """The error for NaN and infinite voxels."""
    return FedsamError(
        "an image holds voxels that are not finite numbers",
        path=path,
        found=f"{bad} of {total} voxels are NaN or infinite",
        expected="finite values",
        fix="replace these voxels, by the background's value for example, or leave the case out",
    )


def _itk_reason(error: RuntimeError) -> str:
    """The line that tells; the last one may be a system message left over from something else."""
    lines = str(error).strip().splitlines()
    return next((line for line in lines if "ERROR" in line), lines[-1] if lines else "no reason given")


def _skewed(path: Path, found: str) -> FedsamError:
    return FedsamError(
        "an image's axes are not at right angles (non-orthonormal direction)",
        path=path,
        found=found,
        expected=f"three perpendicular axes, within {SKEW_TOLERANCE}",
        fix="resample the image onto a straight grid (gantry-tilt correction), or mend its header",
    )


def _unreadable(path: Path, reason: str) -> FedsamError:
    return FedsamError(
        "an image file cannot be read",
        path=path,
        found=reason,
        expected="a NIfTI, NRRD or MetaImage file",
        fix="copy or export the file again; if other programs cannot open it either, it is damaged",
    )


def _unknown_ending(path: Path) -> FedsamError:
    return FedsamError(
        "an image has an unknown file ending", path=path, expected=f"one of {', '.join(FILE_ENDINGS)}", fix="convert the image"
    )


def geometry_of(image: Any) -> Geometry:
    """The grid of a ``SimpleITK.Image``."""
    x, y, z = image.GetSize()
    dx, dy, dz = image.GetSpacing()
    ox, oy, oz = image.GetOrigin()
    return Geometry((z, y, x), (dz, dy, dx), (ox, oy, oz), tuple(image.GetDirection()))


def write_file(
    path: Path, array: NDArray[Any], geometry: Geometry, like: Path | None = None, class_names: Mapping[str, int] | None = None
) -> None:
    """Writes (Z, Y, X) atomically, compressed where the format allows; NIfTI takes its placement bytes from ``like`` (NIfTI-1).

    The names of classes go into the header of NRRD; readers of the other formats look for them in no agreed place of the header.

    Raises:
        FedsamError: the ending is unknown, or the folder cannot be written to.
    """
    if array.shape != geometry.size:
        raise ValueError(f"array {array.shape} does not fit a grid of {geometry.size} voxels")
    parts = split_file_ending(path.name)
    if parts is None:
        raise _unknown_ending(path)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    if class_names is not None and parts[1].lower() == ".nrrd":
        for key, value in segment_tags(class_names, geometry.size).items():
            image.SetMetaData(key, value)
    try:
        with _quiet_itk(), atomic_path(path) as temporary:
            _write_nifti(temporary, image, like) if nifti_header.is_nifti(path) else _write_other(temporary, path, image)
    except RuntimeError as error:
        raise FedsamError(
            "an image cannot be written",
            path=path,
            found=_itk_reason(error),
            expected="a folder this user may write to, with space left",
            fix="choose another output folder, or make space",
        ) from error


def _write_nifti(temporary: Path, image: Any, like: Path | None) -> None:
    """Writes without compression, sets the placement bytes, compresses; equal masks give equal bytes (no time stamp)."""
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=temporary.parent) as folder:
        plain = Path(folder) / "image.nii"
        sitk.WriteImage(image, str(plain), useCompression=False)
        content = bytearray(plain.read_bytes())
    source = nifti_header.read_header(like) if like is not None and nifti_header.is_nifti(like) else None
    if source is not None:
        if source.shape[:3] != image.GetSize():
            raise ValueError(f"{like} has {source.shape[:3]} voxels (x, y, z), the mask {image.GetSize()}")
        nifti_header.copy_placement(source, content)
    compressed = temporary.name.lower().endswith(".gz")
    temporary.write_bytes(gzip.compress(bytes(content), compresslevel=6, mtime=0) if compressed else bytes(content))


def _write_other(temporary: Path, path: Path, image: Any) -> None:
    """NRRD and MetaImage. ``.mhd`` is a pair of files, whose header names the data file: that one is moved in place first."""
    if not path.name.lower().endswith(".mhd"):
        sitk.WriteImage(image, str(temporary), useCompression=True)
        return
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=path.parent) as folder:
        sitk.WriteImage(image, str(Path(folder) / path.name), useCompression=True)
        for data in sorted(Path(folder).iterdir()):
            data.replace(temporary if data.name == path.name else path.parent / data.name)


@contextmanager
def _quiet_itk() -> Iterator[None]:
    """ITK warns on stderr about headers that we judge ourselves."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
