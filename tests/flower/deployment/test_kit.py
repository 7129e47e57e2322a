"""The kit: what lies where, who may read it, and what is refused."""

import os
import shutil
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment import kit as kit_module
from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.certificates import (
    belongs_to,
    covers,
    issued_by,
    load_certificate,
    load_node_key,
    load_node_public_key,
    load_tls_key,
    public_bytes,
)
from fedsam_pipeline.flower.deployment.kit import KitRequest, load_kit, make_kit, make_site_key, place_kit, renew_server_certificate
from tests.flower.deployment.kits import NOON, make_test_kit


@pytest.fixture(autouse=True)
def _a_generous_umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


def request_of(**changes: object) -> KitRequest:
    given = {"federation": "trial", "sites": ("site_a",), "address": ServerAddress("localhost", 8000), "base_model": "tiny_random"}
    return KitRequest(**(given | changes))  # type: ignore[arg-type]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_lies_where(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    start = {"README.md", "ca.crt", "compose.yaml", "fedsam.env", "kit.json", "start.sh"}
    assert files_of(kit / "ca") == {"ca.crt", "ca.key", "app_signing.key"}
    assert files_of(kit / "server") == start | {
        *("server.crt", "server.key", "app_signature.json", "fedsam-superlink.service"),
        *("flower/config.toml", "keys/site_a.pub", "keys/site_b.pub"),
    }
    assert files_of(kit / "site_a") == start | {"site_a.key", "site_a.pub", "trusted_entities.yaml", "fedsam-supernode.service"}
    assert {path.name for path in kit.iterdir()} == {"README.md", "ca", "server", "site_a", "site_b"}
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]


def test_private_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    keys = sorted(path for path in kit.rglob("*.key"))
    assert [path.name for path in keys] == ["app_signing.key", "ca.key", "server.key", "site_a.key", "site_b.key"]
    assert {mode(path) for path in keys} == {0o600}
    assert {mode(kit / name) for name in ("ca", "server", "site_a", "site_b")} == {0o700}
    secrets = [path for path in kit.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert sorted(secrets) == keys


def test_a_site_is_told_of_no_other(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    texts = [path.read_text() for path in (kit / "site_a").rglob("*") if path.is_file()]
    assert not [text for text in texts if "site_b" in text]
    assert load_kit(kit / "server").sites == ("site_a", "site_b")


def test_certificates_fit_their_keys(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit", host="fl.hospital.org", also=("10.1.2.3",))
    authority, server = load_certificate(kit / "site_b" / "ca.crt"), load_certificate(kit / "server" / "server.crt")
    assert issued_by(server, authority) and belongs_to(server, load_tls_key(kit / "server" / "server.key"))
    assert belongs_to(authority, load_tls_key(kit / "ca" / "ca.key"))
    assert all(covers(server, host) for host in ("fl.hospital.org", "10.1.2.3", "localhost", "127.0.0.1"))


def test_keys_are_made_at_the_site_if_asked(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit", keys_at_site=True)
    assert not [path for site in ("site_a", "site_b") for path in (kit / site).glob("*.key")]
    assert not list((kit / "server" / "keys").iterdir())
    line = make_site_key(kit / "site_a")
    assert line == (kit / "site_a" / "site_a.pub").read_text() and line.startswith("ecdsa-sha2-nistp384 ")
    assert mode(kit / "site_a" / "site_a.key") == 0o600
    with pytest.raises(FedsamError, match="this site has a key"):
        make_site_key(kit / "site_a")
    with pytest.raises(FedsamError, match="the server's folder"):
        make_site_key(kit / "server")


def test_no_key_is_made_whose_public_line_cannot_be_written(tmp_path: Path) -> None:
    own = make_test_kit(tmp_path / "kit", keys_at_site=True) / "site_a"
    (own / "site_a.pub").mkdir()
    with pytest.raises(FedsamError, match="cannot write a file"):
        make_site_key(own)
    assert not (own / "site_a.key").exists()
    (own / "site_a.pub").rmdir()
    make_site_key(own)
    assert public_bytes(load_node_key(own / "site_a.key").public_key()) == load_node_public_key(own / "site_a.pub")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir()
    with pytest.raises(FedsamError, match="exists already"):
        make_test_kit(tmp_path / "kit")
    assert not list((tmp_path / "kit").iterdir())


def test_nothing_is_left_of_a_kit_that_failed(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.whl").touch()
        raise FedsamError("pip failed")

    with pytest.raises(FedsamError, match="pip failed"):
        make_kit(request_of(), tmp_path / "new" / "kit", now=NOON, add_wheelhouse=fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (("",), "no name"),
        (("a/b",), "no name"),
        (("../a",), "no name"),
        (("a b",), "no name"),
        ((".a",), "no name"),
        (('a"b',), "no name"),
        (("a$b",), "no name"),
        (("é",), "no name"),
        (("a\n",), "no name"),
        (("a" * 101,), "no name"),
        (("server",), "the kit's own"),
        (("CA",), "the kit's own"),
        (("wheelhouse",), "the kit's own"),
        (("a", "b", "A"), "stands twice"),
        ((), "none"),
    ],
)
def test_names_of_sites_are_checked(sites: tuple[str, ...], words: str) -> None:
    with pytest.raises(FedsamError, match="sites cannot be called so") as caught:
        request_of(sites=sites)
    assert words in str(caught.value.found) and caught.value.fix


@pytest.mark.parametrize("federation", ["", "a.b", "a b", "a/b", "x" * 41, "a]"])
def test_the_name_of_a_federation_is_checked(federation: str) -> None:
    with pytest.raises(FedsamError, match="a federation cannot be called so"):
        request_of(federation=federation)


def test_the_longest_names_fit_into_certificates(tmp_path: Path) -> None:
    longest = request_of(federation="f" * 40, sites=("s" * 100,), address=ServerAddress(".".join(["h" * 62] * 4), 8000))
    make_kit(longest, tmp_path / "kit", now=NOON)
    assert covers(load_certificate(tmp_path / "kit" / "server" / "server.crt"), longest.address.host)


def test_other_names_of_the_server_are_checked() -> None:
    with pytest.raises(FedsamError, match="not a name of a server") as caught:
        request_of(also=("fine.org", "host:80", "*.org"))
    assert caught.value.found == "host:80, *.org"


def test_a_path_that_cannot_stand_in_start_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="cannot stand in start-up files"):
        make_kit(request_of(), tmp_path / "a kit", now=NOON)
    assert not list(tmp_path.iterdir())


def test_a_moved_folder_is_placed_anew(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    moved = Path(shutil.move(kit / "site_a", tmp_path / "elsewhere"))
    key = (moved / "site_a.key").read_bytes()
    assert str(kit) in (moved / "start.sh").read_text()
    place_kit(moved, data=tmp_path / "images", user="fedsam")
    texts = {
        name: (moved / name).read_text() for name in ("start.sh", "fedsam.env", "compose.yaml", "fedsam-supernode.service", "README.md")
    }
    assert not [name for name, text in texts.items() if str(kit) in text]
    assert f"fedsam_raw={tmp_path}/images/raw\n" in texts["fedsam.env"] and "User=fedsam\n" in texts["fedsam-supernode.service"]
    assert (moved / "site_a.key").read_bytes() == key and mode(moved / "site_a.key") == 0o600


def user_of(kit: Path) -> str:
    """Who runs the SuperLink's service."""
    lines = (kit / "server" / "fedsam-superlink.service").read_text().splitlines()
    (user,) = [line.removeprefix("User=") for line in lines if line.startswith("User=")]
    return user


@pytest.mark.parametrize("user", ["jane.doe", "jane@hospital.org", r"HOSPITAL\jane", "1000", "x"])
def test_users_of_a_directory_service_run_the_service(user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_kit(request_of(user=user), tmp_path / "given", now=NOON)
    monkeypatch.setenv("LOGNAME", user)
    make_kit(request_of(), tmp_path / "present", now=NOON)
    assert user_of(tmp_path / "given") == user_of(tmp_path / "present") == user


@pytest.mark.parametrize("user", ["a b", "-a", "a/b", "a:b", "a%u", "a\n", "a\nExecStart=/bin/sh", "HOSPITAL\\", "\\jane", "@", ""])
def test_what_is_no_name_of_a_user_is_refused(user: str, tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="not the name of a user") as caught:
        make_kit(request_of(user=user), tmp_path / "kit", now=NOON)
    assert caught.value.fix and "--user" in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_name_runs_the_service_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of its own."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    make_kit(request_of(), tmp_path / "kit", now=NOON)
    assert user_of(tmp_path / "kit") == str(os.getuid())


def test_a_folder_that_is_none_of_a_kit(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    with pytest.raises(FedsamError, match="a file is missing"):
        place_kit(tmp_path)
    with pytest.raises(FedsamError, match="a whole kit"):
        place_kit(kit)
    (kit / "site_a" / "kit.json").write_text('{"role": "site", "site": "../x"}')
    with pytest.raises(FedsamError, match="not a valid SiteKit"):
        place_kit(kit / "site_a")


def test_the_server_certificate_is_renewed(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit", host="fl.hospital.org", also=("10.1.2.3",))
    (kit / "server" / "server.key").unlink()  # it is on the server; renewing does not need it
    later = NOON + timedelta(days=340)
    old = load_certificate(kit / "server" / "server.crt")
    assert renew_server_certificate(kit, also=("new.org",), now=later) == later + timedelta(days=365)
    new = load_certificate(kit / "server" / "server.crt")
    assert new.public_key() == old.public_key() and issued_by(new, load_certificate(kit / "ca" / "ca.crt"))
    assert all(covers(new, host) for host in ("fl.hospital.org", "10.1.2.3", "localhost", "new.org"))


def test_nothing_is_renewed_without_a_living_authority(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    before = (kit / "server" / "server.crt").read_bytes()
    with pytest.raises(FedsamError, match="authority's certificate has expired"):
        renew_server_certificate(kit, now=NOON + timedelta(days=5 * 365 + 1))
    (kit / "ca" / "ca.key").unlink()
    with pytest.raises(FedsamError, match="cannot be read"):
        renew_server_certificate(kit, now=NOON)
    assert (kit / "server" / "server.crt").read_bytes() == before


def test_nothing_is_renewed_with_another_authoritys_key(tmp_path: Path) -> None:
    kit, other = make_test_kit(tmp_path / "kit"), make_test_kit(tmp_path / "other")
    before = (kit / "server" / "server.crt").read_bytes()
    shutil.copy(other / "ca" / "ca.key", kit / "ca")
    with pytest.raises(FedsamError, match=r"ca\.key is not the key of ca\.crt") as caught:
        renew_server_certificate(kit, now=NOON)
    assert caught.value.fix and (kit / "server" / "server.crt").read_bytes() == before


def test_the_reserved_names_are_those_of_the_kit(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    own = {path.name for path in kit.iterdir()} - {"site_a", "site_b"}
    for name in own - {"README.md"}:
        with pytest.raises(FedsamError):
            request_of(sites=(name,))
    assert kit_module.WHEELHOUSE_FOLDER not in own
