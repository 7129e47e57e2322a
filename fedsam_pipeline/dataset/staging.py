"""A new dataset folder appears complete or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.paths import DATASET_PATTERN


def new_dataset_folder(root: Path, number: int, name: str) -> Path:
    """``root/DatasetXXX_Name``.

    Raises:
        FedsamError: the number has more than three digits, the name holds other than letters, digits, ``_`` and ``-``, or another dataset
            of ``root`` has the number.
    """
    folder_name = f"Dataset{number:03d}_{name}"
    if DATASET_PATTERN.match(folder_name) is None:
        raise FedsamError(
            "a dataset cannot have this number or name",
            found=folder_name,
            expected="a number from 0 to 999 and a name of letters, digits, _ and -",
            fix="choose another with -d",
        )
    same = sorted(other.name for other in root.glob(f"Dataset{number:03d}_*") if other.name != folder_name)
    if same:
        raise FedsamError(
            f"dataset number {number} is taken",
            path=root,
            found=", ".join(same),
            expected="one dataset a number",
            fix="choose another number with -d",
        )
    return root / folder_name


@contextmanager
def staged_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder beside ``folder``, renamed onto it on success, deleted on any failure.

    Raises:
        FedsamError: ``folder`` exists and ``overwrite`` is false, or its parent cannot be written to.
    """
    if os.path.lexists(folder) and not overwrite:
        raise FedsamError(
            "the dataset folder exists already",
            path=folder,
            expected="a new folder",
            fix="add --overwrite to replace it, or choose another number with -d",
        )
    staging = folder.with_name(f".tmp-{secrets.token_hex(4)}-{folder.name}")
    try:
        try:
            staging.mkdir(parents=True)
        except OSError as error:
            raise FedsamError(
                "cannot create a folder",
                path=folder.parent,
                found=str(error),
                expected="a folder this user may write to",
                fix="choose another output folder with -o",
            ) from error
        yield staging
        if os.path.lexists(folder):
            retired = folder.with_name(f".old-{secrets.token_hex(4)}-{folder.name}")
            folder.rename(retired)
            staging.rename(folder)
            _remove(retired)
        else:
            staging.rename(folder)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
