"""From ``-i`` and ``-o`` to cases: which files are the channels of which image, and where its mask goes.

A channel is a file, or a folder of DICOM slices; a folder's mask is NIfTI, or a DICOM Segmentation where that is asked for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsam_pipeline.dataset.dicom import is_series_folder
from fedsam_pipeline.dataset.dicom_seg import ENDING as DICOM_SEG_ENDING
from fedsam_pipeline.dataset.volume import FILE_ENDINGS, split_file_ending
from fedsam_pipeline.errors import FedsamError

CHANNEL_PATTERN = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
"""nnU-Net's names: CASE_0000, CASE_0001, ..."""
DICOM = "DICOM"
"""format of a folder of slices"""
DICOM_MASK_ENDINGS = (".nii.gz", ".nii", DICOM_SEG_ENDING)
"""of the mask of a folder of slices; the first is taken where the user does not say"""


@dataclass(frozen=True)
class InputCase:
    """One image to predict: its name, one file a channel in order, and the mask to write."""

    case: str
    channels: tuple[Path, ...]
    output: Path

    @property
    def is_dicom_seg(self) -> bool:
        """Whether the mask is to be a DICOM Segmentation."""
        return mask_ending(self.output) == DICOM_SEG_ENDING

    @property
    def possible_outputs(self) -> tuple[Path, ...]:
        """Where predictions into this folder leave the mask: of a folder of slices in one of several formats."""
        if not self.channels[0].is_dir():
            return (self.output,)
        return tuple(self.output.with_name(f"{self.case}{ending}") for ending in DICOM_MASK_ENDINGS)


def file_ending(path: Path) -> str | None:
    """The supported ending of a file name, such as ``.nii.gz``, or ``None``."""
    parts = split_file_ending(path.name)
    return None if parts is None else parts[1]


def mask_ending(path: Path) -> str | None:
    """The ending of a mask's file name, ``.dcm`` among them; ``None`` for the name of a folder."""
    return DICOM_SEG_ENDING if path.name.lower().endswith(DICOM_SEG_ENDING) else file_ending(path)


def _format(path: Path) -> str | None:
    """The ending of an image file, ``DICOM`` for a folder of slices, ``None`` for anything else."""
    return (DICOM if is_series_folder(path) else None) if path.is_dir() else file_ending(path)


def is_single_image(path: Path) -> bool:
    """Whether ``-i`` names one image: a file, or a folder of DICOM slices."""
    return path.is_file() or is_series_folder(path)


def _stem(path: Path) -> str:
    parts = None if path.is_dir() else split_file_ending(path.name)
    return path.name if parts is None else parts[0]


def _mask_endings(image: Path) -> tuple[str, ...]:
    """What the name of an image's mask may end in; the first is taken where the user does not say."""
    image_format = _format(image)
    assert image_format is not None  # it has been found to be an image
    return DICOM_MASK_ENDINGS if image_format == DICOM else (image_format,)


def find_cases(source: Path, target: Path, channel_names: Sequence[str], *, dicom_seg: bool = False) -> list[InputCase]:
    """Groups the images of ``source`` into cases and names their masks; reads no image.

    A folder holds nnU-Net's names (``CASE_0000.nii.gz``) or, for models of one channel, plain files; folders of DICOM slices count as
    files. A single file, or a single folder of slices, brings its other channels along where it has nnU-Net's name. A mask has its case's
    name and the ending of its image, ``.nii.gz`` for DICOM, or ``.dcm``.

    Args:
        source: folder of images, or one image.
        target: folder; or a file, where ``source`` is one image.
        channel_names: the channels that the model was trained with, in order.
        dicom_seg: masks are DICOM Segmentations. For one image, a ``target`` that ends in ``.dcm`` says so, too.

    Returns:
        The cases, sorted by name.

    Raises:
        FedsamError: nothing there, no image, a wrong number of channels (all such cases are named), two images of one name, a mask that
            would overwrite an image, or a DICOM Segmentation of another image or in a place where it would be taken for a slice.
    """
    single = is_single_image(source)
    if single:
        groups = _group_of_file(source, len(channel_names))
    elif source.is_dir():
        if mask_ending(target) is not None:
            raise FedsamError(
                "many images cannot become one mask", path=target, found="a file for -o and a folder for -i", fix="give a folder to -o"
            )
        groups = _group(sorted(source.iterdir()), source, len(channel_names))
    else:
        raise FedsamError("the input is missing", path=source, expected="a folder of images, or one image", fix="check -i")
    _check_channels(groups, source, channel_names)
    cases = []
    if dicom_seg:
        _refuse_other_formats(groups, source)
    for case, files in sorted(groups.items()):
        endings = (DICOM_SEG_ENDING,) if dicom_seg else _mask_endings(files[0])
        output = target if mask_ending(target) is not None else target / f"{case}{endings[0]}"
        if single and mask_ending(output) not in endings:
            of_series = "the mask of a DICOM series is written as NIfTI, or as DICOM Segmentation"
            raise FedsamError(
                of_series if len(endings) > 1 or dicom_seg else "the mask must have the format of its image",
                path=output,
                found=mask_ending(output),
                expected=" or ".join(endings),
                fix=f"end -o with {endings[0]}",
            )
        if output.resolve() in {path.resolve() for path in files}:
            raise FedsamError("a mask would overwrite its image", path=output, fix="choose another folder for -o")
        cases.append(InputCase(case, tuple(files), output))
        if cases[-1].is_dicom_seg:
            _refuse_place(output, source, files)
    return cases


def _refuse_other_formats(groups: Mapping[str, Sequence[Path]], source: Path) -> None:
    """A DICOM Segmentation refers to the slices of a series: other images have none."""
    others = [case for case, files in sorted(groups.items()) if _format(files[0]) != DICOM]
    if others:
        raise FedsamError(
            "only a DICOM series has a DICOM Segmentation",
            path=source,
            found=f"{len(others)} image(s) of another format: {', '.join(others[:5])}",
            expected="folders of DICOM slices",
            fix="leave --dicom_seg out, or move the other images to a folder of their own",
        )


def _refuse_place(output: Path, source: Path, series: Sequence[Path]) -> None:
    """Beside slices it would be taken for one of them; and the folder that it lies in for one of the series of the folder above."""
    folder, above = output.parent.resolve(), source.resolve()
    slices = {path.resolve() for path in series}
    if folder in {above, *slices} or (above not in slices and folder.parent == above):
        raise FedsamError(
            "a DICOM Segmentation would lie among the images",
            path=output,
            expected="a folder outside: in this one it would be read as an image next time",
            fix="choose another folder for -o",
        )


def _group(files: Sequence[Path], folder: Path, num_channels: int) -> dict[str, list[Path]]:
    """Case -> files in order of their channels."""
    images = [path for path in files if not path.name.startswith(".") and _format(path) is not None]
    if not images:
        raise FedsamError(
            "no images found",
            path=folder,
            found=", ".join(path.name for path in files[:5]) or "an empty folder",
            expected=f"files that end in {', '.join(FILE_ENDINGS)}, or folders of DICOM slices",
            fix="check -i",
        )
    numbered: dict[str, dict[int, list[Path]]] = {}
    plain: dict[str, list[Path]] = {}
    for path in images:
        stem = _stem(path)
        match = CHANNEL_PATTERN.match(stem)
        if match:
            numbered.setdefault(match["case"], {}).setdefault(int(match["channel"]), []).append(path)
        else:
            plain.setdefault(stem, []).append(path)
    groups = {case: [path for channel in sorted(parts) for path in parts[channel]] for case, parts in numbered.items()}
    if num_channels == 1:  # "scan_0007" without a "scan_0000" is a name and not a channel
        for case, parts in numbered.items():
            if 0 not in parts:
                for path in groups.pop(case):
                    plain.setdefault(_stem(path), []).append(path)
    for case, paths in plain.items():
        groups.setdefault(case, []).extend(paths)
    return groups


def _group_of_file(path: Path, num_channels: int) -> dict[str, list[Path]]:
    if _format(path) is None:
        raise FedsamError(
            "not a supported image", path=path, found=path.name, expected=f"a file that ends in {', '.join(FILE_ENDINGS)}", fix="convert it"
        )
    if path.is_dir():
        path = path.resolve()  # "." has no name
    stem = _stem(path)
    match = CHANNEL_PATTERN.match(stem)
    if match is None:
        return {stem: [path]}
    if num_channels == 1:
        return {match["case"] if int(match["channel"]) == 0 else stem: [path]}
    ending = "" if path.is_dir() else file_ending(path)
    siblings = (path.with_name(f"{match['case']}_{channel:04d}{ending}") for channel in range(num_channels))
    return {match["case"]: [sibling for sibling in siblings if sibling.exists()]}


def _check_channels(groups: dict[str, list[Path]], source: Path, channel_names: Sequence[str]) -> None:
    wrong = {case: files for case, files in sorted(groups.items()) if not _complete(files, len(channel_names))}
    if wrong:
        shown = "; ".join(f"{case}: {', '.join(path.name for path in files)}" for case, files in list(wrong.items())[:5])
        expected = ", ".join(f"CASE_{index:04d} ({name})" for index, name in enumerate(channel_names))
        raise FedsamError(
            f"{len(wrong)} of {len(groups)} cases have a wrong number of channels: {', '.join(list(wrong)[:5])}",
            path=source,
            found=shown,
            expected=f"{len(channel_names)} file(s) a case: {expected}",
            fix="complete these cases, or move them to another folder",
        )


def _complete(files: Sequence[Path], num_channels: int) -> bool:
    """One file a channel, numbered 0 to ``num_channels - 1``, all of one format; or a single plain file for a single channel."""
    if len(files) != num_channels or len({_format(path) for path in files}) != 1:
        return False
    if num_channels == 1:
        return True
    stems = [_stem(path) for path in files]
    return all(stem.endswith(f"_{index:04d}") for index, stem in enumerate(stems))
