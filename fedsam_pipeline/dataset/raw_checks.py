"""What is checked in ``dataset.json`` and in the file names beside it, one function a key. No pixel is read here."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedsam_pipeline.dataset.dicom import is_series_folder
from fedsam_pipeline.dataset.label_scheme import BACKGROUND_NAME, LabelScheme, read_label_scheme
from fedsam_pipeline.dataset.volume import FILE_ENDINGS
from fedsam_pipeline.errors import FedsamError

SHOWN = 5
"""how many offending cases an error names"""
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_CHANNEL = re.compile(r"^(.+)_(\d{4})$")

ExplicitCases = dict[str, tuple[tuple[Path, ...], Path]]


class FoundCases(NamedTuple):
    """The cases of a folder, sorted, and all that is wrong with its files."""

    cases: list[str]
    faults: list[FedsamError]


def complain(path: Path, what: str, *, found: object = None, expected: object = None, fix: str | None = None) -> FedsamError:
    """An error about the raw dataset that always says how to mend it."""
    return FedsamError(what, path=path, found=found, expected=expected, fix=fix or "mend dataset.json (docs/formats.md shows one)")


def some(names: Iterable[str]) -> str:
    """The first few of ``names``, sorted, and how many there are."""
    listed = sorted(names)
    text = ", ".join(listed[:SHOWN])
    return f"{len(listed)}: {text}{', ...' if len(listed) > SHOWN else ''}"


def require_keys(content: Mapping[str, Any], path: Path) -> None:
    """``channel_names`` (or nnU-Net v1's ``modality``), ``labels`` and ``file_ending`` must be there; all that lack are named at once."""
    missing = [key for key in ("channel_names", "labels", "file_ending") if key not in content]
    if "modality" in content and "channel_names" in missing:
        missing.remove("channel_names")
    if missing:
        raise complain(
            path,
            "dataset.json lacks keys",
            found=", ".join(content) or "no keys",
            expected=f"also {', '.join(missing)}",
            fix='add them, such as "channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"; '
            "a Medical Segmentation Decathlon folder is converted by fedsam_convert_dataset msd",
        )


def read_channel_names(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Channel names in order, from ``channel_names`` or ``modality``."""
    value = content.get("channel_names", content.get("modality"))
    numbers = [str(number) for number in range(len(value))] if isinstance(value, dict) else []
    if not isinstance(value, dict) or not value or set(value) != set(numbers) or not all(isinstance(name, str) for name in value.values()):
        raise complain(path, "channel_names is not usable", found=value, expected='numbers from 0 without a gap, such as {"0": "CT"}')
    return tuple(value[number] for number in numbers)


def read_labels_key(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Class names to values, ordered by value; ``read_label_scheme`` also gives regions and the ignore label."""
    return read_label_scheme(content, path).classes


def read_file_ending(content: Mapping[str, Any], path: Path) -> str:
    """The ending of all image and mask files."""
    value = content["file_ending"]
    if value not in FILE_ENDINGS:
        raise complain(path, "file_ending is unknown", found=value, expected=f"one of {', '.join(FILE_ENDINGS)}")
    return str(value)


def read_explicit_cases(content: Mapping[str, Any], path: Path, folder: Path) -> ExplicitCases | None:
    """nnU-Net v2's ``dataset`` map, case to (images, label); relative paths start at the dataset's folder. ``None`` without the key."""
    if "dataset" not in content:
        return None
    value = content["dataset"]
    shape = '{"CASE": {"images": ["..."], "label": "..."}}'
    if not isinstance(value, dict) or not value:
        raise complain(path, "dataset is not usable", found=type(value).__name__, expected=shape)
    bad = [case for case, entry in value.items() if not _is_explicit_entry(entry)]
    if bad:
        raise complain(path, "entries of dataset are not usable", found=some(bad), expected=shape)
    _check_names(value, "case", path)
    return {
        case: (tuple(folder / image for image in entry["images"]), folder / entry["label"])  # "/" keeps absolute paths as they are
        for case, entry in value.items()
    }


def raise_file_faults(faults: Sequence[FedsamError], folder: Path) -> None:
    """One error for all faults of the files; nothing without any."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        listed = "\n".join(f"    {line}" for fault in faults for line in str(fault).splitlines())
        raise complain(
            folder, f"the raw dataset's files have {len(faults)} kinds of faults", found=f"\n{listed}", fix="mend each as it says"
        )


def check_files(explicit: ExplicitCases, path: Path, channels: int) -> list[FedsamError]:
    """The faults of the listed files: every one must be there, and every case must have all channels."""
    faults = []
    wrong = [f"{case} ({len(images)})" for case, (images, _) in explicit.items() if len(images) != channels]
    if wrong:
        faults.append(complain(path, "cases have a wrong number of channels", found=some(wrong), expected=f"{channels} image files a case"))
    gone = [
        f"{case} ({file.name})"
        for case, (images, label) in explicit.items()
        for file in (*images, label)
        if not _is_there(file, series=file in images)
    ]
    if gone:
        what = "files that dataset.json lists are missing"
        faults.append(complain(path, what, found=some(gone), fix="restore the files, or remove the entries"))
    return faults


def _is_there(path: Path, *, series: bool) -> bool:
    """Whether there is a file, or, where it may be one, the folder of a DICOM series."""
    try:
        return path.is_file() or (series and is_series_folder(path))
    except OSError:  # a name that is too long for any file
        return False


def find_training_cases(folder: Path, ending: str, channels: int) -> FoundCases:
    """Cases of ``imagesTr``; each must have all channels and a mask in ``labelsTr``."""
    absent = [
        complain(folder / name, "a folder of the raw dataset is missing", fix=f"create {name} and put the files there")
        for name in ("imagesTr", "labelsTr")
        if not (folder / name).is_dir()
    ]
    if absent:
        return FoundCases([], absent)
    cases, faults = _cases_of(folder / "imagesTr", ending, channels)
    if not cases:
        return FoundCases(
            [],
            faults
            or [
                complain(
                    folder / "imagesTr",
                    "the dataset has no cases",
                    found=some(file.name for file in _visible(folder / "imagesTr")),
                    expected=f"files named CASE_0000{ending}",
                    fix="add images, or correct file_ending in dataset.json",
                )
            ],
        )
    masks = {file.name.removesuffix(ending) for file in _visible(folder / "labelsTr") if file.name.endswith(ending)}
    without_mask = set(cases) - masks
    if without_mask:
        faults.append(
            complain(
                folder / "labelsTr",
                "labels are missing",
                found=f"no mask for {some(without_mask)}",
                expected=f"one file CASE{ending} for each case of imagesTr",
                fix="add the masks, or move these images to imagesTs",
            )
        )
    without_image = masks - set(cases)
    if without_image:
        faults.append(
            complain(
                folder / "imagesTr",
                "masks have no image",
                found=some(without_image),
                expected=f"CASE_0000{ending} in imagesTr for each mask of labelsTr",
                fix="add the images, or remove the masks",
            )
        )
    return FoundCases(cases, faults)


def find_test_cases(folder: Path, ending: str, channels: int) -> FoundCases:
    """Cases of ``imagesTs``; none where the folder is missing."""
    images = folder / "imagesTs"
    return _cases_of(images, ending, channels) if images.is_dir() else FoundCases([], [])


def assign_sites(content: Mapping[str, Any], key: str, cases: Sequence[str], path: Path, *, default: str) -> dict[str, tuple[str, ...]]:
    """Site to cases, both sorted; without the key all cases belong to ``default``.

    Raises:
        FedsamError: an empty site, a case in two sites or in none, or a case without files.
    """
    if key not in content:
        return {default: tuple(sorted(cases))} if cases else {}
    value = content[key]
    shape = f'"{key}": {{"site_a": ["CASE", ...], ...}}'
    if (
        not isinstance(value, dict)
        or (not value and cases)
        or not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in value.values())
    ):
        raise complain(path, f"{key} is not usable", found=value if isinstance(value, str) else type(value).__name__, expected=shape)
    _check_names(value, "site", path)
    empty = [site for site, names in value.items() if not names]
    if empty:
        raise complain(
            path,
            f"{key} has empty sites",
            found=", ".join(sorted(empty)),
            expected="at least one case a site",
            fix="add cases, or remove the site",
        )
    owners = defaultdict(list)
    for site, names in value.items():
        for name in names:
            owners[name].append(site)
    twice = [f"{name} ({', '.join(where)})" for name, where in owners.items() if len(where) > 1]
    if twice:
        raise complain(path, f"cases are in {key} more than once", found=some(twice), expected="each case in exactly one site")
    without_files = set(owners) - set(cases)
    if without_files:
        where = "imagesTr" if key == "sites" else "imagesTs"
        raise complain(
            path,
            f"{key} names cases that have no files",
            found=some(f"{name} ({owners[name][0]})" for name in without_files),
            expected=f"CASE_0000 in {where} for each case",
            fix="add the files, or remove the names (case names come without _0000 and without file ending)",
        )
    without_site = set(cases) - set(owners)
    if without_site:
        raise complain(path, f"cases belong to none of the {key}", found=some(without_site), expected="each case in exactly one site")
    return {site: tuple(sorted(value[site])) for site in sorted(value)}


def read_patients(content: Mapping[str, Any], path: Path, cases: Collection[str]) -> dict[str, str]:
    """Case to patient; cases that are not named are patients of their own."""
    value = content.get("patients", {})
    if not isinstance(value, dict) or not all(isinstance(patient, str) for patient in value.values()):
        raise complain(path, "patients is not usable", found=type(value).__name__, expected='"patients": {"CASE": "patient", ...}')
    unknown = set(value) - set(cases)
    if unknown:
        raise complain(path, "patients names cases that do not exist", found=some(unknown), expected="names of cases in this dataset")
    return dict(sorted(value.items()))


def read_site_labels(content: Mapping[str, Any], path: Path, sites: Collection[str], scheme: LabelScheme) -> dict[str, tuple[str, ...]]:
    """Site to the classes (or regions) it annotated; sites that are not named annotated all.

    Raises:
        FedsamError: an unknown site or class, or a site that annotated nothing.
    """
    value = content.get("site_labels", {})
    known = set(scheme.annotatable)
    if not isinstance(value, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in value.values()
    ):
        raise complain(path, "site_labels is not usable", found=type(value).__name__, expected='"site_labels": {"site_a": ["liver"], ...}')
    wrong = [
        f"{site}: {', '.join(names)}" for site, names in value.items() if site not in sites or not set(names) - {BACKGROUND_NAME} <= known
    ]
    if wrong:
        raise complain(
            path,
            "site_labels names sites or classes that do not exist",
            found=some(wrong),
            expected=f"sites {', '.join(sorted(sites))}; classes {', '.join(sorted(known))}",
        )
    nothing = [site for site, names in value.items() if not set(names) - {BACKGROUND_NAME}]
    if nothing:
        raise complain(
            path,
            "site_labels has sites that annotated nothing",
            found=some(nothing),
            expected="at least one class a site",
            fix="name the classes of each, or leave the sites out",
        )
    return {site: tuple(names) for site, names in sorted(value.items())}


def channel_path(folder: Path, name: str, ending: str) -> Path:
    """Where the channel ``CASE_0000`` is: a file with the dataset's ending, or a folder of DICOM slices of that very name."""
    series = folder / name
    return series if series.is_dir() else folder / f"{name}{ending}"


def _cases_of(folder: Path, ending: str, channels: int) -> FoundCases:
    found: dict[str, list[int]] = defaultdict(list)
    unnumbered = []
    for file in _visible(folder):
        series = file.is_dir() and is_series_folder(file)
        if not series and not file.name.endswith(ending):
            continue
        match = _CHANNEL.match(file.name if series else file.name.removesuffix(ending))
        if match is None:
            unnumbered.append(file.name)
        else:
            found[match.group(1)].append(int(match.group(2)))
    errors = []
    if unnumbered:
        errors.append(
            complain(
                folder,
                "image file names lack the channel number",
                found=some(unnumbered),
                expected=f"CASE_0000{ending}",
                fix="rename the files, the first channel with _0000",
            )
        )
    wanted = set(range(channels))
    faults = []
    for case, numbers in found.items():
        faults += [f"{case}_{number:04d} missing" for number in sorted(wanted - set(numbers))]
        faults += [f"{case}_{number:04d} too many" for number in sorted(set(numbers) - wanted)]
        faults += [f"{case}_{number:04d} both as a file and as a folder" for number in sorted(wanted) if numbers.count(number) > 1]
    if faults:
        errors.append(
            complain(
                folder,
                "cases have a wrong number of channels",
                found=some(faults),
                expected=f"{channels} files a case, _0000 to _{channels - 1:04d}, as channel_names (or channels.order of site.toml) says",
                fix="add the missing files, remove the others, or correct channel_names in dataset.json",
            )
        )
    return FoundCases(sorted(found), errors)


def _visible(folder: Path) -> list[Path]:
    """Files that are not hidden; macOS strews ``._`` files into archives."""
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))


def refuse_clashes(cases: Sequence[str], path: Path) -> None:
    """The store keeps the mask of case ``a`` as ``a_seg``: no other case may be called so."""
    names = set(cases)
    clashing = [case for case in cases if case.endswith("_seg") and case.removesuffix("_seg") in names]
    if clashing:
        raise complain(
            path, "a case is named like another case's mask", found=some(clashing), expected="no CASE beside CASE_seg", fix="rename it"
        )


def _is_explicit_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("images"), list)
        and all(isinstance(image, str) for image in entry["images"])
        and isinstance(entry.get("label"), str)
    )


def is_safe_name(name: str) -> bool:
    """Whether a name can be a file name: nothing that could leave the folder."""
    return _SAFE_NAME.fullmatch(name) is not None


def _check_names(names: Iterable[str], kind: str, path: Path) -> None:
    """Names become file names: nothing that could leave the folder, and no two that differ in case only."""
    names = list(names)
    bad = [name for name in names if not is_safe_name(name)]
    if bad:
        raise complain(
            path, f"{kind} names cannot be file names", found=some(map(repr, bad)), expected="letters, digits, _ . and -", fix="rename them"
        )
    folded = Counter(name.lower() for name in names)
    same = [name for name in names if folded[name.lower()] > 1]
    if same:
        raise complain(path, f"{kind} names differ only in upper and lower case", found=some(same), fix="rename them")
