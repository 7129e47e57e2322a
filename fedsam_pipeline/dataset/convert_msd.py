"""A Medical Segmentation Decathlon task (Antonelli et al., Nature Communications 2022) made into our raw layout.

A task is ``TaskXX_Name/{dataset.json, imagesTr, labelsTr, imagesTs}``. Several channels are the fourth axis of one file there and one file
each here; class names and values change sides in ``labels``. Scalar files are copied byte for byte.
"""

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import SimpleITK

from fedsam_pipeline.dataset.conversion import SourceCase, write_dataset
from fedsam_pipeline.dataset.image_files import FILE_ENDINGS, geometry_of, read_channels, split_file_ending
from fedsam_pipeline.dataset.raw import ONLY_SITE, RawDataset
from fedsam_pipeline.dataset.raw_checks import assign_sites, read_channel_names, read_labels_key, some
from fedsam_pipeline.dataset.staging import new_dataset_folder
from fedsam_pipeline.dataset.volume import write_image
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json

sitk: Any = SimpleITK  # it ships without types

_TASK_NAME = re.compile(r"^Task(\d+)_(.+)$")
_KEPT_KEYS = ("description", "reference", "licence", "release")


@dataclass(frozen=True)
class _Task:
    """What a task's ``dataset.json`` says; files by case."""

    images: dict[str, Path]
    labels: dict[str, Path]
    test_images: dict[str, Path]
    file_ending: str
    content: dict[str, Any]


def convert_msd(
    source: Path,
    root: Path,
    *,
    number: int | None = None,
    sites_file: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> RawDataset:
    """Converts one task. The new dataset appears complete or not at all; the source is not touched.

    Args:
        source: the folder of the task.
        root: the raw folder; ``DatasetXXX_Name`` is made in it.
        number: of the new dataset; ``None`` takes the task's.
        sites_file: JSON ``{"site_a": ["CASE", ...], ...}``; test cases may be named too, then all of them must be.
        overwrite: replace a dataset of the same number and name.
        progress: show a progress bar on a terminal.

    Raises:
        FedsamError: the task is not one, files are missing or unreadable, channels do not match, sites do not fit, or the dataset exists.
    """
    source = Path(source)
    task = _read_task(source)
    folder = new_dataset_folder(Path(root), *_number_and_name(source, task.content, number))
    content = _dataset_json(task, source, sites_file)
    channels = len(content["channel_names"])
    cases = [SourceCase(case, (path,), task.labels.get(case)) for case, path in (task.images | task.test_images).items()]

    def copy_images(case: SourceCase, part: Path) -> None:
        _convert_image(case.images[0], part, case.name, task.file_ending, channels)

    return write_dataset(folder, source, cases, content, overwrite=overwrite, progress=progress, copy_images=copy_images)


def _read_task(source: Path) -> _Task:
    path = source / "dataset.json"
    content = read_json(path, fix="give the folder of one task, such as Task04_Hippocampus, unpacked from its .tar")
    expected = '"modality": {"0": "MRI"}, "labels": {"0": "background", ...}, "training": [{"image": ..., "label": ...}], "test": [...]'
    missing = [key for key in ("modality", "labels", "training") if key not in content] if isinstance(content, dict) else ["all keys"]
    if missing:
        raise FedsamError(
            "not the dataset.json of a Medical Segmentation Decathlon task",
            path=path,
            found=f"no {', '.join(missing)}",
            expected=expected,
            fix="a dataset with channel_names and file_ending is in our layout already: put it into the raw folder as it is",
        )
    training, test = content["training"], content.get("test", [])
    if not (isinstance(training, list) and isinstance(test, list) and all(_is_pair(entry) for entry in training)):
        raise FedsamError("the lists of cases have another shape", path=path, expected=expected, fix="restore the task's dataset.json")
    pairs = [(entry["image"], entry["label"]) for entry in training if not _is_junk(entry["image"])]
    tests = [entry["image"] if isinstance(entry, dict) else str(entry) for entry in test]
    images = {_case_of(image, path): source / image for image, _ in pairs}
    test_images = {_case_of(image, path): source / image for image in tests if not _is_junk(image)}
    labels = {_case_of(image, path): source / label for image, label in pairs}
    if not images:
        raise FedsamError("the task has no labelled cases", path=path, found="training is empty", expected=expected)
    twice = [case for case, count in Counter([_case_of(image, path) for image, _ in pairs]).items() if count > 1]
    twice += sorted(set(images) & set(test_images))
    if twice:
        raise FedsamError("cases are listed more than once", path=path, found=some(twice), expected="each case once")
    files = [*images.values(), *labels.values(), *test_images.values()]
    gone = [str(file.relative_to(source)) for file in files if not file.is_file()]
    if gone:
        raise FedsamError(
            "files that dataset.json lists are missing", path=path, found=some(gone), fix="unpack the task's .tar again, completely"
        )
    endings = {parts[1] for file in files if (parts := split_file_ending(file.name))}
    if len(endings) != 1:
        raise FedsamError("the task mixes file endings", path=path, found=", ".join(sorted(endings)), expected="one ending for all files")
    return _Task(images, labels, test_images, endings.pop(), content)


def _dataset_json(task: _Task, source: Path, sites_file: Path | None) -> dict[str, Any]:
    """Our ``dataset.json``; checked here, so that a bad one is refused before any file is written."""
    path = source / "dataset.json"
    labels = task.content["labels"]
    if not isinstance(labels, dict) or not all(str(number).isdigit() for number in labels):
        raise FedsamError("labels is not usable", path=path, found=labels, expected='{"0": "background", "1": "liver", ...}')
    content: dict[str, Any] = {
        "name": str(task.content.get("name", source.resolve().name)),
        **{key: task.content[key] for key in _KEPT_KEYS if key in task.content},
        "channel_names": task.content["modality"],
        "labels": {("background" if int(number) == 0 else str(name)): int(number) for number, name in labels.items()},
        "file_ending": task.file_ending,
    }
    read_channel_names(content, path)
    read_labels_key(content, path)
    if sites_file is not None:
        content |= _sites(sites_file, sorted(task.images), sorted(task.test_images))
    return content


def _sites(path: Path, cases: Sequence[str], test_cases: Sequence[str]) -> dict[str, Any]:
    value = read_json(path, fix='write a JSON file such as {"site_a": ["CASE", ...], "site_b": [...]}')
    if not isinstance(value, Mapping) or not all(isinstance(names, list) for names in value.values()):
        raise FedsamError("the sites file has another shape", path=path, expected='{"site_a": ["CASE", ...], ...}', fix="mend the file")
    is_test = set(test_cases)
    training = {site: [name for name in names if name not in is_test] for site, names in value.items()}
    result = {"sites": assign_sites({"sites": training}, "sites", cases, path, default=ONLY_SITE)}
    if any(name in is_test for names in value.values() for name in names):
        test = {site: named for site, names in value.items() if (named := [name for name in names if name in is_test])}
        result["test_sites"] = assign_sites({"test_sites": test}, "test_sites", test_cases, path, default=ONLY_SITE)
    return result


def _convert_image(path: Path, folder: Path, case: str, ending: str, channels: int) -> None:
    images = read_channels(path)
    if len(images) != channels:
        raise FedsamError(
            "an image has a wrong number of channels",
            path=path,
            found=f"{len(images)} channels",
            expected=f"{channels}, as modality in dataset.json says",
            fix="correct modality in dataset.json, or leave the case out",
        )
    if channels == 1:
        shutil.copyfile(path, folder / f"{case}_0000{ending}")
        return
    for channel, image in enumerate(images):
        write_image(folder / f"{case}_{channel:04d}{ending}", sitk.GetArrayViewFromImage(image), geometry_of(image))


def _number_and_name(source: Path, content: Mapping[str, Any], number: int | None) -> tuple[int, str]:
    match = _TASK_NAME.match(source.resolve().name)
    if match is None and number is None:
        raise FedsamError(
            "the task's number is unknown",
            path=source,
            expected="a folder named TaskXX_Name",
            fix="choose a number with -d, such as -d 4",
        )
    name = match.group(2) if match else str(content.get("name", source.resolve().name))
    return (int(match.group(1)) if match and number is None else int(number or 0)), re.sub(r"[^A-Za-z0-9_\-]+", "_", name)


def _case_of(name: str, path: Path) -> str:
    parts = split_file_ending(PurePosixPath(name).name)
    if parts is None:
        raise FedsamError(
            "the task lists a file that is no image", path=path, found=name, expected=f"files that end in {', '.join(FILE_ENDINGS)}"
        )
    return parts[0]


def _is_junk(name: str) -> bool:
    """macOS leaves ``._NAME`` files beside the real ones, also in some of the published archives."""
    return PurePosixPath(name).name.startswith("._")


def _is_pair(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("image"), str) and isinstance(entry.get("label"), str)
