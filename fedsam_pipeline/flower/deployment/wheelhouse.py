"""A folder from which a hospital without internet installs everything: wheels, and the base weights."""

import platform
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import sha256_file, write_text
from fedsam_pipeline.flower.deployment.start_files import README_FILE, filled
from fedsam_pipeline.model.checkpoints import verify_hash
from fedsam_pipeline.model.weights import find_weights
from fedsam_pipeline.specs.base_model import BaseModelSpec

LOCK_FILE, SUMS_FILE = "requirements.lock", "SHA256SUMS"


def fill_wheelhouse(folder: Path, lock: Path, spec: BaseModelSpec) -> None:
    """Fills a new folder: wheels for this Python and platform, the lock, the weights, checksums and a README.

    Packages that come as sources are built here, so that the site needs no compiler and no build tools.

    Args:
        folder: exists and is empty.
        lock: this project's ``requirements.lock``, beside its sources.
        spec: the base model whose weights go with it, from the cache.

    Raises:
        FedsamError: the lock or the sources are not there, the weights are missing or damaged, or pip fails.
    """
    _check_sources(lock)
    weights = find_weights(spec)
    if weights is not None:
        verify_hash(spec, weights)
        shutil.copyfile(weights, folder / weights.name)
    _pip_wheel(folder, "-r", str(lock))
    _pip_wheel(folder, "--no-deps", str(lock.absolute().parent))
    shutil.copyfile(lock, folder / LOCK_FILE)
    values = {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "platform": f"{platform.system()} {platform.machine()}",
        "version": version("fedsam-pipeline"),
        "base_model": spec.name,
        "weights": f"--from {weights.name}" if weights is not None else "",
    }
    write_text(folder / README_FILE, filled("wheelhouse.md", values))
    sums = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    write_text(folder / SUMS_FILE, "".join(sums))


def _check_sources(lock: Path) -> None:
    """The lock must lie beside this project's ``pyproject.toml``."""
    try:
        project = tomllib.loads((lock.absolute().parent / "pyproject.toml").read_text(encoding="utf-8"))
        found = project.get("project", {}).get("name")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        found = str(error)
    if not lock.is_file() or found != "fedsam-pipeline":
        raise FedsamError(
            "a wheelhouse is made from this project's sources",
            path=lock,
            found=found if lock.is_file() else "no such file",
            expected="requirements.lock beside the pyproject.toml of fedsam-pipeline",
            fix="run this in a checkout, or give --wheelhouse PATH/requirements.lock",
        )


def _pip_wheel(folder: Path, *what: str) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--wheel-dir", str(folder), *what]
    finished = subprocess.run(command, check=False, stdout=sys.stderr)
    if finished.returncode:
        raise FedsamError(
            "pip could not fill the wheelhouse",
            found=f"code {finished.returncode}; its messages are above",
            expected="every package of the lock from your package index",
            fix="mend what pip says, or leave --wheelhouse out",
        )
