"""A wheelhouse that installs without any index."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.wheelhouse import fill_wheelhouse
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.specs.base_model import WeightsSource

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "0.1.0"
[tool.setuptools]
py-modules = ["{module}"]
"""


def sources(folder: Path, name: str) -> Path:
    folder.mkdir()
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text("WORKS = True\n")
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name, module=module))
    return folder


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the right name and a lock of one package that comes as sources; pip may ask no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's inverted word for: build with what is installed
    locked = sources(tmp_path / "locked", "a-locked-package")
    path = sources(tmp_path / "project", "fedsam-pipeline") / "requirements.lock"
    path.write_text(f"# comment\n{locked.as_uri()}\n")
    return path


def test_a_wheelhouse_holds_everything_and_installs_offline(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("fedsam_cache", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "w.pth").write_bytes(b"weights")
    weights = WeightsSource(
        file_name="w.pth", num_bytes=7, file_sha256=hashlib.sha256(b"weights").hexdigest(), licence="x", origin="x", url="x"
    )
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    fill_wheelhouse(folder, lock, base_model_spec("tiny_random").model_copy(update={"weights": weights}))
    wheels = ["a_locked_package-0.1.0-py3-none-any.whl", "fedsam_pipeline-0.1.0-py3-none-any.whl"]
    others = ["README.md", "SHA256SUMS", "requirements.lock", "w.pth"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*wheels, *others])
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert "fedsam_download_weights tiny_random --from w.pth\n" in (folder / "README.md").read_text()
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--find-links",
        str(folder),
        "--target",
        str(tmp_path / "site"),
    ]
    subprocess.run([*command, "--no-deps", "fedsam-pipeline", "a-locked-package"], check=True)
    assert (tmp_path / "site" / "fedsam_pipeline.py").is_file() and (tmp_path / "site" / "a_locked_package.py").is_file()


def test_pips_failure_is_the_users(lock: Path, tmp_path: Path) -> None:
    lock.write_text("no-such-package-of-ours==1.0\n")
    with pytest.raises(FedsamError, match="pip could not fill the wheelhouse"):
        fill_wheelhouse(tmp_path, lock, base_model_spec("tiny_random"))


@pytest.mark.parametrize("name", ["missing.lock", "alone/requirements.lock"])
def test_a_lock_without_our_sources_beside_it_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.parent != tmp_path:
        sources(path.parent, "something-else")
        path.touch()
    with pytest.raises(FedsamError, match="made from this project's sources"):
        fill_wheelhouse(tmp_path, path, base_model_spec("tiny_random"))


def test_missing_weights_are_noticed_before_the_long_download(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("fedsam_cache", str(tmp_path / "nowhere"))
    with pytest.raises(FedsamError, match="weights of lite_medsam are missing"):
        fill_wheelhouse(tmp_path, lock, base_model_spec("lite_medsam"))
