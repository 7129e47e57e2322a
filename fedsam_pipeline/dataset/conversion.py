"""What the converters share: finding files, naming everything that does not fit, and writing our raw layout.

Images are never decoded: a ``.nii.gz`` file is copied byte for byte, a ``.nii`` file is compressed. Masks are read, because their values
must be known ones; a mask whose values change is written anew with the placement bytes of its source (``volume.write_labels``), any other
is copied. Whether image and mask lie on the same grid is for the integrity checks to say, which can also mend it.
"""

import csv
import gzip
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.raw_checks import SHOWN, assign_sites, some
from fedsam_pipeline.dataset.staging import staged_folder
from fedsam_pipeline.dataset.volume import read_labels, write_labels
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import write_json

ENDINGS = (".nii.gz", ".nii")
"""of the images that the converters other than ``msd`` read"""
_INDENT = "\n" + 12 * " "  # where FedsamError puts its values


@dataclass(frozen=True)
class SourceCase:
    """One case of another layout.

    Args:
        name: in our layout.
        images: one file a channel, in order.
        label: the mask; without one the case goes to ``imagesTs``.
        site: who owns it; ``None`` where the source does not say.
        patient: whose it is; ``None`` for a patient of its own.
        held_out: goes to ``imagesTs`` and ``labelsTs`` although it has a mask.
        values: value in the source's mask to ours; ``None`` copies the mask without a look.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    site: str | None = None
    patient: str | None = None
    held_out: bool = False
    values: Mapping[int, int] | None = None

    @property
    def is_test(self) -> bool:
        """Whether it belongs into ``imagesTs``."""
        return self.held_out or self.label is None


CopyImages = Callable[[SourceCase, Path], None]


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without hidden files and what macOS adds to archives."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def find_root(source: Path, fits: Callable[[Path], bool]) -> Path:
    """``source``, or the one folder up to two levels below it that ``fits``: archives often wrap their content.

    Raises:
        FedsamError: ``source`` is no folder.
    """
    if not source.is_dir():
        raise FedsamError("the folder to convert is missing", path=source, expected="the unpacked download", fix="check the path")
    level = [source]
    for _ in range(3):
        found = [folder for folder in level if fits(folder)]
        if found:
            return found[0] if len(found) == 1 else source
        level = [child for folder in level for child in visible(folder) if child.is_dir()]
    return source


def misfit(source: Path, faults: Sequence[str], layout: str, fix: str) -> FedsamError:
    """The error for a download that is not laid out as documented; one line a kind of fault."""
    return FedsamError(
        "the folder is not laid out as expected",
        path=source,
        found=_INDENT.join(faults),
        expected=_INDENT.join(layout.splitlines()),
        fix=fix,
    )


def stem_of(path: Path) -> str | None:
    """The name without ``.nii.gz`` or ``.nii``, or ``None`` for any other file."""
    return next((path.name[: -len(ending)] for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def read_table(path: Path, alternatives: Sequence[tuple[str, ...]], expected: str) -> list[dict[str, str]]:
    """The rows of a CSV file that has all columns of one of the ``alternatives``; the first column names each row once.

    Returns:
        Rows by column name, without spaces around; those of the alternative that fits come first, in its order.

    Raises:
        FedsamError: the file is missing, is no CSV, lacks columns, or has empty or repeated names.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            rows = [{key: (value or "").strip() for key, value in row.items() if key is not None} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FedsamError("a table cannot be read", path=path, found=str(error), expected=expected, fix="check the path") from error
    columns = next((columns for columns in alternatives if set(columns) <= set(names)), None)
    if columns is None or not rows:
        found = f"columns {', '.join(names) or 'none'}; {len(rows)} rows"
        raise FedsamError("a table lacks columns or rows", path=path, found=found, expected=expected, fix="take the source's own file")
    rows = [{column: row[column] for column in columns} | row for row in rows]
    empty = sum(not all(row[column] for column in columns) for row in rows)
    twice = [name for name, count in Counter(row[columns[0]] for row in rows).items() if count > 1]
    faults = [f"{empty} rows with an empty field"] if empty else []
    faults += [f"more than one row for {some(twice)}"] if twice else []
    if faults:
        fix = "take the source's own file"
        raise FedsamError("a table is not usable", path=path, found=_INDENT.join(faults), expected="one full row a case", fix=fix)
    return rows


def site_names(values: Iterable[str]) -> dict[str, str]:
    """Sites as a table calls them to names that sort well: ``7`` becomes ``site_07`` beside ``10``; words stay as they are."""
    values = set(values)
    width = max((len(str(int(value))) for value in values if value.isdecimal()), default=1)
    return {value: f"site_{int(value):0{width}d}" if value.isdecimal() else value for value in values}


def write_dataset(
    folder: Path,
    source: Path,
    cases: Sequence[SourceCase],
    content: Mapping[str, Any],
    *,
    overwrite: bool,
    progress: bool,
    copy_images: CopyImages | None = None,
) -> RawDataset:
    """Writes ``DatasetXXX_Name``, which appears complete or not at all.

    Args:
        folder: the new dataset.
        source: what is converted, for errors.
        cases: with all their files.
        content: ``dataset.json`` but for ``numTraining``, ``sites``, ``test_sites`` and ``patients``, which are added from ``cases``; those
            that it has stay. Its ``file_ending`` is that of the masks and, with ``copy_images``, of the images.
        overwrite: replace a dataset of the same number and name.
        progress: show a progress bar on a terminal.
        copy_images: writes the channels of a case into a folder; by default each of its files is one.

    Raises:
        FedsamError: masks hold unknown values (all are listed), files cannot be read, sites do not fit, or the dataset exists.
    """
    cases = sorted(cases, key=lambda case: case.name)
    content = dict(content) | {key: value for key, value in case_keys(cases, source).items() if key not in content}
    copy_images = copy_images or _copy_channels
    with staged_folder(folder, overwrite=overwrite) as staging:
        for part in ("imagesTr", "labelsTr", *(("imagesTs",) if any(case.is_test for case in cases) else ())):
            (staging / part).mkdir()
        masked = [case for case in cases if case.label is not None]
        _write_masks(masked, staging, source, str(content["file_ending"]), progress=progress)
        for case in tqdm(cases, desc="copying images", unit="case", disable=None if progress else True):
            copy_images(case, staging / ("imagesTs" if case.is_test else "imagesTr"))
        write_json(staging / "dataset.json", content)
    return load_raw_dataset(folder)


def case_keys(cases: Sequence[SourceCase], source: Path) -> dict[str, Any]:
    """The keys of ``dataset.json`` that follow from the cases; sites only where all are known, patients only where cases share one."""
    parts = {"sites": [case for case in cases if not case.is_test], "test_sites": [case for case in cases if case.is_test]}
    keys: dict[str, Any] = {"numTraining": len(parts["sites"])}
    for key, listed in parts.items():
        owned: dict[str, list[str]] = defaultdict(list)
        for case in listed:
            if case.site is not None:
                owned[case.site].append(case.name)
        if listed and all(case.site is not None for case in listed):
            keys[key] = assign_sites({key: dict(owned)}, key, [case.name for case in listed], source, default="")
    count = Counter(case.patient for case in cases)
    shared = {case.name: case.patient for case in cases if case.patient is not None and count[case.patient] > 1}
    return keys | ({"patients": shared} if shared else {})


def copy_as(source: Path, target: Path) -> None:
    """Copies an image byte for byte; ``.nii`` to ``.nii.gz`` compresses the same bytes, without a time stamp."""
    if source.name.lower().endswith(".nii") and target.name.endswith(".gz"):
        with open(source, "rb") as plain, open(target, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as compressed:
            shutil.copyfileobj(plain, compressed)
    else:
        shutil.copyfile(source, target)


def _copy_channels(case: SourceCase, folder: Path) -> None:
    for channel, path in enumerate(case.images):
        copy_as(path, folder / f"{case.name}_{channel:04d}.nii.gz")


def _write_masks(cases: Sequence[SourceCase], staging: Path, source: Path, ending: str, *, progress: bool) -> None:
    """All masks, before any image: values that are not known show early, and all at once."""
    faults = []
    for case in tqdm(cases, desc="reading masks", unit="case", disable=None if progress else True):
        folder = staging / ("labelsTs" if case.is_test else "labelsTr")
        folder.mkdir(exist_ok=True)
        assert case.label is not None
        unknown = _write_mask(case.label, folder / f"{case.name}{ending}", case.values)
        if unknown and case.values is not None:
            known = ", ".join(str(value) for value in sorted(case.values))
            where = case.label.relative_to(source) if case.label.is_relative_to(source) else case.label
            faults.append(f"label value {', '.join(map(str, unknown[:SHOWN]))} in {where}, which may hold {known}")
    if faults:
        more = [f"and {len(faults) - SHOWN} more masks"] if len(faults) > SHOWN else []
        raise FedsamError(
            "masks hold values that their source does not document",
            path=source,
            found=_INDENT.join(faults[:SHOWN] + more),
            expected="the label values of docs/convert.md",
            fix="download these masks again, or move the cases out of the folder",
        )


def _write_mask(source: Path, target: Path, values: Mapping[int, int] | None) -> list[int]:
    """Copies a mask, or writes it with other values; returns the values that it should not have."""
    if values is None:
        shutil.copyfile(source, target)
        return []
    volume = read_labels(source)
    present = [int(value) for value in np.unique(volume.array)]
    unknown = [value for value in present if value not in values]
    if unknown:
        return unknown
    if all(values[value] == value for value in present):
        copy_as(source, target)
        return []
    renumbered = np.zeros(volume.array.shape, np.uint8)
    for value in present:
        renumbered[volume.array == value] = values[value]
    write_labels(target, renumbered, volume.geometry, like=source)
    return []
