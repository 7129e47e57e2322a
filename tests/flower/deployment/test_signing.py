"""The kit signs the installed app, the SuperLink hands it out signed and no other, SuperNodes accept it; no key is at the server."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.fab import Fab
from flwr.supernode.start_client_internal import _verify_fab

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment import signing, superlink
from fedsam_pipeline.flower.deployment.kit import SIGNING_KEY, sign_installed_app
from fedsam_pipeline.flower.deployment.signing import APP, installed_app, signature_of_installed_app
from fedsam_pipeline.flower.deployment.start_files import TRUSTED_FILE
from fedsam_pipeline.specs.site_kit import SIGNATURE_FILE
from tests.flower.deployment.kits import NOON, make_test_kit


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make_test_kit(tmp_path / "kit")


@pytest.fixture
def stored(kit: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Fab]]:
    """What reaches the store of a SuperLink with the kit's signature."""
    kept: list[Fab] = []
    monkeypatch.setattr(SqlLinkState, "store_app", lambda _state, fab, *_, **__: kept.append(fab))
    superlink.hand_out_signed(signature_of_installed_app(kit / "server" / SIGNATURE_FILE))
    yield kept


def store(app: bytes) -> None:
    SqlLinkState.store_app(None, Fab(hashlib.sha256(app).hexdigest(), app, {}), "federation", "app", "serverapp", "someone")  # type: ignore[arg-type]


def trusted(kit: Path) -> dict[str, str]:
    entity, _, key = (kit / "site_a" / TRUSTED_FILE).read_text().partition(": ")
    return {entity: key.strip().strip("'")}


def another_app(folder: Path) -> bytes:
    other = shutil.copytree(APP, folder / "other")
    (other / "pyproject.toml").write_text((APP / "pyproject.toml").read_text().replace("site_node:client_app", "else:client_app"))
    content: bytes = build_fab_from_disk(other)
    return content


def test_a_site_accepts_the_installed_app(kit: Path, stored: list[Fab]) -> None:
    store(installed_app())
    assert _verify_fab(stored[0], trusted(kit)) and stored[0].verifications["valid_license"]
    assert not _verify_fab(stored[0], trusted(make_test_kit(kit.parent / "other")))


def test_another_app_stays_unsigned(tmp_path: Path, kit: Path, stored: list[Fab]) -> None:
    store(another_app(tmp_path))
    assert not stored[0].verifications and not _verify_fab(stored[0], trusted(kit))


def test_the_server_cannot_pass_the_signature_on_to_another_app(tmp_path: Path, kit: Path, stored: list[Fab]) -> None:
    store(installed_app())
    app = another_app(tmp_path)
    assert not _verify_fab(Fab(hashlib.sha256(app).hexdigest(), app, stored[0].verifications), trusted(kit))


def test_the_app_is_the_same_bytes_wherever_it_is_installed(tmp_path: Path) -> None:
    assert installed_app() == build_fab_from_disk(shutil.copytree(APP, tmp_path / "elsewhere" / "app"))


def test_a_new_version_is_signed_with_the_same_key(
    tmp_path: Path, kit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = another_app(tmp_path)
    signature, before = kit / "server" / SIGNATURE_FILE, installed_app()
    monkeypatch.setattr(signing, "installed_app", lambda: newer)
    with pytest.raises(FedsamError, match="not of the app that is installed"):
        signature_of_installed_app(signature)
    monkeypatch.setattr("sys.argv", ["superlink", "--app-signature", str(signature), "--port", "1"])
    monkeypatch.setattr(superlink, "flower_superlink", lambda: pytest.fail("started without a signature of its app"))
    with pytest.raises(SystemExit) as ended:
        superlink.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and str(signature) in said and "fedsam_site_kit sign" in said
    monkeypatch.setattr("fedsam_pipeline.flower.deployment.kit.installed_app", lambda: newer)
    assert sign_installed_app(kit, now=NOON + timedelta(days=1)) == signature
    found = Fab("", newer, signing.verifications(signature_of_installed_app(signature)))
    assert _verify_fab(found, trusted(kit)) and newer != before


@pytest.mark.parametrize(("content", "says"), [(None, "cannot be read"), (b"not a key", "not an Ed25519"), ("site", "not an Ed25519")])
def test_a_key_that_cannot_sign(kit: Path, content: bytes | str | None, says: str) -> None:
    path, signature = kit / "ca" / SIGNING_KEY, kit / "server" / SIGNATURE_FILE
    before = signature.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes((kit / "site_a" / "site_a.key").read_bytes() if isinstance(content, str) else content)
    with pytest.raises(FedsamError, match=says) as error:
        sign_installed_app(kit, now=NOON)
    assert error.value.path == str(path) and signature.read_bytes() == before


def test_the_key_of_another_kit_is_refused(tmp_path: Path, kit: Path) -> None:
    """Every site would refuse what it signs, long after."""
    shutil.copy(make_test_kit(tmp_path / "other") / "ca" / SIGNING_KEY, kit / "ca" / SIGNING_KEY)
    before = (kit / "server" / SIGNATURE_FILE).read_bytes()
    with pytest.raises(FedsamError, match="not the key that this kit's sites trust"):
        sign_installed_app(kit, now=NOON)
    assert (kit / "server" / SIGNATURE_FILE).read_bytes() == before


@pytest.mark.parametrize("change", [{"entity": "someone"}, {"signature": "short"}, {"app_sha256": 1}, {"signed_at": -1}])
def test_a_damaged_signature(kit: Path, change: dict[str, object]) -> None:
    path = kit / "server" / SIGNATURE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FedsamError) as error:
        signature_of_installed_app(path)
    assert error.value.path == str(path) and "fedsam_site_kit sign" in str(error.value)


def test_flower_sees_its_own_flags_only(kit: Path, stored: list[Fab], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("sys.argv", ["superlink", "--app-signature", str(kit / "server" / SIGNATURE_FILE), "--port", "1"])
    monkeypatch.setattr(superlink, "flower_superlink", lambda: seen.extend(__import__("sys").argv))
    monkeypatch.setattr(superlink, "close_control_api", lambda: None)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    superlink.main()
    assert seen == ["superlink", "--port", "1"]
