"""The SuperLink signs the installed app and no other; SuperNodes accept what it signs."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.fab import Fab
from flwr.supernode.start_client_internal import _verify_fab

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment import superlink
from fedsam_pipeline.flower.deployment.signing import APP, Signer, installed_app, sign_installed_app
from fedsam_pipeline.flower.deployment.start_files import SIGNING_KEY, TRUSTED_FILE
from tests.flower.deployment.kits import make_test_kit


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make_test_kit(tmp_path / "kit")


@pytest.fixture
def stored(kit: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Fab]]:
    """What reaches the store of a SuperLink that signs."""
    kept: list[Fab] = []
    monkeypatch.setattr(SqlLinkState, "store_app", lambda _state, fab, *_, **__: kept.append(fab))
    sign_installed_app(Signer.load(kit / "server" / SIGNING_KEY))
    yield kept


def store(app: bytes) -> None:
    SqlLinkState.store_app(None, Fab(hashlib.sha256(app).hexdigest(), app, {}), "federation", "app", "serverapp", "someone")  # type: ignore[arg-type]


def trusted(kit: Path) -> dict[str, str]:
    entity, _, key = (kit / "site_a" / TRUSTED_FILE).read_text().partition(": ")
    return {entity: key.strip().strip("'")}


def test_a_site_accepts_the_installed_app(kit: Path, stored: list[Fab]) -> None:
    store(installed_app())
    assert _verify_fab(stored[0], trusted(kit)) and stored[0].verifications["valid_license"]
    assert not _verify_fab(stored[0], trusted(make_test_kit(kit.parent / "other")))


def test_another_app_stays_unsigned(tmp_path: Path, kit: Path, stored: list[Fab]) -> None:
    other = shutil.copytree(APP, tmp_path / "other")
    (other / "pyproject.toml").write_text((APP / "pyproject.toml").read_text().replace("site_node:client_app", "else:client_app"))
    store(build_fab_from_disk(other))
    assert not stored[0].verifications and not _verify_fab(stored[0], trusted(kit))


def test_the_app_is_the_same_bytes_wherever_it_is_installed(tmp_path: Path) -> None:
    assert installed_app() == build_fab_from_disk(shutil.copytree(APP, tmp_path / "elsewhere" / "app"))


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"not a key", "cannot be read"), ("server.key", "cannot be read"), ("site", "wrong kind")],
)
def test_a_key_that_cannot_sign(
    tmp_path: Path, kit: Path, content: bytes | str | None, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    if content == "site":
        content = (kit / "site_a" / "site_a.key").read_bytes()
    elif content == "server.key":
        content = (kit / "server" / "server.key").read_bytes()
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(FedsamError, match=says):
        Signer.load(path)
    monkeypatch.setattr("sys.argv", ["superlink", "--sign-app-with", str(path), "--port", "1"])
    monkeypatch.setattr(superlink, "flower_superlink", lambda: pytest.fail("started without the key"))
    with pytest.raises(SystemExit) as ended:
        superlink.main()
    assert ended.value.code == 2 and str(path) in capsys.readouterr().err


def test_flower_sees_its_own_flags_only(kit: Path, stored: list[Fab], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("sys.argv", ["superlink", "--sign-app-with", str(kit / "server" / SIGNING_KEY), "--port", "1"])
    monkeypatch.setattr(superlink, "flower_superlink", lambda: seen.extend(__import__("sys").argv))
    monkeypatch.setattr(superlink, "close_control_api", lambda: None)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    superlink.main()
    assert seen == ["superlink", "--port", "1"]
