"""Where datasets, preprocessed stores and results live, and how ``-d`` finds one.

The three folders come from the environment (``fedsam_raw``, ``fedsam_preprocessed``, ``fedsam_results``); unset, they are
``./fedsam_data/{raw,preprocessed,results}``.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fedsam_pipeline.errors import FedsamError

DATASET_PATTERN = re.compile(r"^Dataset(\d{3})_([A-Za-z0-9_\-]+)\Z")


@dataclass(frozen=True)
class DataFolders:
    """The three root folders, and whether any of them is a default the user should hear about."""

    raw: Path
    preprocessed: Path
    results: Path
    defaulted: tuple[str, ...]

    def notice(self) -> str | None:
        """One sentence for the user when an environment variable is unset, else ``None``."""
        if not self.defaulted:
            return None
        base = Path("fedsam_data")
        return f"{', '.join(self.defaulted)} not set: using {base}/ in the current folder"


def data_folders() -> DataFolders:
    """Resolves the three root folders from the environment or their defaults."""
    found: dict[str, Path] = {}
    defaulted: list[str] = []
    for name in ("raw", "preprocessed", "results"):
        variable = f"fedsam_{name}"
        value = os.environ.get(variable)
        if value:
            found[name] = Path(value)
        else:
            found[name] = Path("fedsam_data") / name
            defaulted.append(variable)
    return DataFolders(found["raw"], found["preprocessed"], found["results"], tuple(defaulted))


def dataset_id(folder_name: str) -> int:
    """The number of a ``DatasetXXX_Name`` folder; raises ``FedsamError`` for any other name."""
    match = DATASET_PATTERN.match(folder_name)
    if match is None:
        raise FedsamError(
            "a dataset folder has an unusual name",
            path=folder_name,
            expected="DatasetXXX_Name with three digits, such as Dataset004_Hippocampus",
            fix="rename the folder",
        )
    return int(match.group(1))


def list_datasets(root: Path, marker: str) -> list[Path]:
    """All ``DatasetXXX_Name`` folders below ``root`` that contain ``marker`` (a glob), sorted."""
    if not root.is_dir():
        return []
    return sorted(
        folder for folder in root.iterdir() if folder.is_dir() and DATASET_PATTERN.match(folder.name) and any(folder.glob(marker))
    )


def choose_dataset(root: Path, identifier: str | int | None, *, marker: str = "dataset.json", stage: str, fix: str) -> Path:
    """The folder of one dataset below ``root``.

    Args:
        root: one of the three root folders.
        identifier: ``1``, ``"001"``, ``"Dataset001_Demo"``, or ``None`` for the only one there is.
        marker: a glob that a dataset folder of this stage contains.
        stage: word for messages, such as ``"raw"`` or ``"planned"``.
        fix: the command that makes a dataset of this stage.

    Raises:
        FedsamError: none there, several and no identifier, or the named one is missing.
    """
    candidates = list_datasets(root, marker)
    names = ", ".join(folder.name for folder in candidates) or "none"
    if identifier is None:
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            raise FedsamError(f"there is no {stage} dataset", path=root, found=names, fix=fix)
        raise FedsamError(
            f"there are several {stage} datasets and no -d says which",
            path=root,
            found=names,
            expected="-d with the number or the name of one of them",
            fix=f"add -d {dataset_id(candidates[0].name)}, for example",
        )
    text = str(identifier)
    matches = [folder for folder in candidates if folder.name == text or (text.isdecimal() and dataset_id(folder.name) == int(text))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise FedsamError(
            f"several {stage} datasets carry the number {text}",
            path=root,
            found=", ".join(folder.name for folder in matches),
            expected="one folder a number",
            fix="give the full name to -d, or rename one folder",
        )
    raise FedsamError(f"{stage} dataset {text} is missing", path=root, found=names, expected=f"a dataset {text}", fix=fix)
