"""The start-up kit: one folder for the server and one for each site, with every key, certificate and file that starts the federation."""

import getpass
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedsam_pipeline.dataset.raw_checks import is_safe_name
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_folder, write_bytes, write_secret, write_text
from fedsam_pipeline.flower.deployment.address import ServerAddress, is_host
from fedsam_pipeline.flower.deployment.certificates import (
    authority_certificate,
    belongs_to,
    certificate_bytes,
    entity_id,
    key_bytes,
    load_certificate,
    load_signing_key,
    load_tls_key,
    names_of,
    new_key,
    openssh_pair,
    server_certificate,
    signing_key,
)
from fedsam_pipeline.flower.deployment.signing import installed_app, sign_app
from fedsam_pipeline.flower.deployment.start_files import (
    AUTHORITY_FILE,
    KEYS_FOLDER,
    README_FILE,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    Placement,
    commands_folder,
    filled,
    write_start_files,
    write_trusted,
)
from fedsam_pipeline.specs.site_kit import KIT_FILE, SIGNATURE_FILE, AppSignature, KitVersions, SiteKit

AUTHORITY_FOLDER, SERVER_FOLDER, WHEELHOUSE_FOLDER = "ca", "server", "wheelhouse"
AUTHORITY_KEY, SIGNING_KEY = "ca.key", "app_signing.key"
RUNTIME_PORT = 9094
"""of the first site's SuperNode on loopback, Flower's own default; the next site has the next one, so that several fit on one machine"""

_RESERVED = {AUTHORITY_FOLDER, SERVER_FOLDER, WHEELHOUSE_FOLDER, README_FILE.lower(), KEYS_FOLDER}


@dataclass(frozen=True)
class KitRequest:
    """What kit to make.

    Args:
        federation: its name, also that of Flower's connection.
        sites: their names.
        address: at which all sites reach the server.
        also: other DNS names and addresses of the server.
        base_model: whose weights the sites need.
        keys_at_site: make no private key of a site here.
        user: runs the services; ``None`` for the present one.
    """

    federation: str
    sites: tuple[str, ...]
    address: ServerAddress
    base_model: str
    also: tuple[str, ...] = ()
    keys_at_site: bool = False
    user: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", self.federation):
            raise FedsamError(
                "a federation cannot be called so",
                found=self.federation,
                expected="up to 40 letters, digits, _ and -",
                fix="--federation hospitals, for example",
            )
        _check_sites(self.sites)
        check_names(self.also)


def check_names(names: Sequence[str]) -> None:
    """``FedsamError`` where one of the server's other names is neither a DNS name nor an IP address."""
    if bad := [name for name in names if not is_host(name)]:
        raise FedsamError(
            "not a name of a server", found=", ".join(bad), expected="DNS names or IP addresses, without a port", fix="correct --also"
        )


def make_kit(
    request: KitRequest, folder: Path, *, now: datetime, add_wheelhouse: Callable[[Path], None] | None = None
) -> tuple[datetime, datetime]:
    """Makes a kit.

    Args:
        request: what to make.
        folder: a new one; nothing is left of it where the work fails.
        now: certificates begin a day before.
        add_wheelhouse: fills the folder that it is given.

    Returns:
        Until when the authority's and the server's certificates are valid.

    Raises:
        FedsamError: the folder exists, cannot be written to, or its path or the user cannot stand in start-up files.
    """
    folder = folder.absolute()
    versions = KitVersions(fedsam_pipeline=version("fedsam-pipeline"), flwr=version("flwr"))
    address = request.address
    authority_key, server_key = new_key(), new_key()
    authority = authority_certificate(authority_key, request.federation, now)
    names = (address.host, *request.also)
    server = server_certificate(server_key.public_key(), names, authority_key, authority, now)
    author = signing_key()
    author_private, author_public = openssh_pair(author, f"{request.federation} app")

    def kit_of(site: str | None, runtime_port: int) -> SiteKit:
        return SiteKit(
            role="server" if site is None else "site",
            federation=request.federation,
            site=site,
            sites=request.sites if site is None else (site,),
            host=address.host,
            port=address.port,
            runtime_port=runtime_port,
            base_model=request.base_model,
            made_with=versions,
        )

    with atomic_folder(folder) as staged:
        for name in (AUTHORITY_FOLDER, SERVER_FOLDER, *request.sites):
            (staged / name).mkdir(mode=0o700)
            write_bytes(staged / name / AUTHORITY_FILE, certificate_bytes(authority))
        write_secret(staged / AUTHORITY_FOLDER / AUTHORITY_KEY, key_bytes(authority_key))
        write_secret(staged / AUTHORITY_FOLDER / SIGNING_KEY, author_private)
        _finish(kit_of(None, RUNTIME_PORT), staged / SERVER_FOLDER, folder / SERVER_FOLDER, request.user)
        write_bytes(staged / SERVER_FOLDER / SERVER_CERTIFICATE, certificate_bytes(server))
        write_secret(staged / SERVER_FOLDER / SERVER_KEY, key_bytes(server_key))
        sign_app(author, installed_app(), int(now.timestamp())).save(staged / SERVER_FOLDER / SIGNATURE_FILE)
        (staged / SERVER_FOLDER / KEYS_FOLDER).mkdir()
        for number, site in enumerate(request.sites):
            own = staged / site
            _finish(kit_of(site, RUNTIME_PORT + number), own, folder / site, request.user)
            write_trusted(own, entity_id(author_public), author_public)
            if not request.keys_at_site:
                write_bytes(staged / SERVER_FOLDER / KEYS_FOLDER / f"{site}.pub", _add_key(own, site))
        if add_wheelhouse is not None:
            (staged / WHEELHOUSE_FOLDER).mkdir()
            add_wheelhouse(staged / WHEELHOUSE_FOLDER)
        write_text(staged / README_FILE, _kit_readme(request, authority, server))
    return authority.not_valid_after_utc, server.not_valid_after_utc


def load_kit(folder: Path) -> SiteKit:
    """Reads ``kit.json`` of a server's or a site's folder; ``FedsamError`` where ``folder`` is neither."""
    if (folder / SERVER_FOLDER / KIT_FILE).is_file():
        raise FedsamError(
            "this is a whole kit, not the folder of the server or of a site", path=folder, fix=f"give {folder / SERVER_FOLDER}, for example"
        )
    return SiteKit.load(folder / KIT_FILE, fix="give the folder of the server or of a site, as fedsam_site_kit init made it")


def place_kit(folder: Path, *, data: Path | None = None, user: str | None = None) -> SiteKit:
    """Writes the start-up files of a kit's folder anew, for where it lies now and for this Python environment.

    Args:
        folder: the server's or a site's.
        data: holds ``raw``, ``preprocessed``, ``results`` and ``cache``; ``None`` for ``data`` in ``folder``.
        user: runs the service; ``None`` for the present one.
    """
    kit = load_kit(folder)
    write_start_files(kit, folder, _placement(folder.absolute(), data, user))
    return kit


def make_site_key(folder: Path) -> str:
    """Makes a site's key pair where it is used.

    Returns:
        The public line, for the server's operator.

    Raises:
        FedsamError: the folder is not a site's, or has a key.
    """
    kit = load_kit(folder)
    if kit.site is None:
        raise FedsamError("this is the server's folder", path=folder, expected="a site's", fix="run this at the site, in its own folder")
    if (existing := folder / f"{kit.site}.key").exists():
        raise FedsamError(
            "this site has a key",
            path=existing,
            expected="none",
            fix=f"use it; for a new one delete it first, and have the operator unregister {kit.site} and register the new line",
        )
    return _add_key(folder, kit.site).decode("ascii")


def renew_server_certificate(folder: Path, *, also: Sequence[str] = (), now: datetime) -> datetime:
    """Replaces the server's certificate by one for the same key and names, valid for another year.

    Args:
        folder: a whole kit, with ``ca/`` and ``server/``.
        also: more names of the server.
        now: the new certificate begins a day before.

    Returns:
        Until when it is valid.

    Raises:
        FedsamError: files are missing or damaged, a name is none, the authority's key is another's, or its own certificate has expired.
    """
    check_names(also)
    authority_key = load_tls_key(folder / AUTHORITY_FOLDER / AUTHORITY_KEY)
    authority = load_certificate(folder / AUTHORITY_FOLDER / AUTHORITY_FILE)
    if not belongs_to(authority, authority_key):
        raise FedsamError(
            f"{AUTHORITY_KEY} is not the key of {AUTHORITY_FILE}",
            path=folder / AUTHORITY_FOLDER,
            expected="both of one kit",
            fix=f"put both back from the offline copy of this kit's {AUTHORITY_FOLDER}/; no site would trust a certificate of another key",
        )
    kit = load_kit(folder / SERVER_FOLDER)
    path = folder / SERVER_FOLDER / SERVER_CERTIFICATE
    old = load_certificate(path)
    key = old.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FedsamError("the server's certificate is none of ours", path=path, fix="make a new kit")
    if authority.not_valid_after_utc <= now:
        raise FedsamError(
            "the authority's certificate has expired",
            path=folder / AUTHORITY_FOLDER / AUTHORITY_FILE,
            found=f"valid until {authority.not_valid_after_utc:%Y-%m-%d}",
            fix="make a new kit; every site needs the new ca.crt",
        )
    new = server_certificate(key, (kit.host, *names_of(old), *also), authority_key, authority, now)
    write_bytes(path, certificate_bytes(new))
    return new.not_valid_after_utc


def sign_installed_app(folder: Path, *, now: datetime) -> Path:
    """Signs the app of the package that is installed here, for a server that runs the same version.

    Args:
        folder: a whole kit, with ``ca/`` and ``server/``.
        now: stands in the signature.

    Returns:
        The file that goes to the server.

    Raises:
        FedsamError: the key is missing, damaged or another kit's, or ``folder`` is no kit.
    """
    key = load_signing_key(folder / AUTHORITY_FOLDER / SIGNING_KEY)
    load_kit(folder / SERVER_FOLDER)
    path = folder / SERVER_FOLDER / SIGNATURE_FILE
    signature = sign_app(key, installed_app(), int(now.timestamp()))
    if path.exists() and (known := AppSignature.load(path).entity) != signature.entity:
        raise FedsamError(
            f"{SIGNING_KEY} is not the key that this kit's sites trust",
            path=folder / AUTHORITY_FOLDER / SIGNING_KEY,
            found=signature.entity,
            expected=known,
            fix=f"put it back from the offline copy of this kit's {AUTHORITY_FOLDER}/",
        )
    signature.save(path)
    return path


def _finish(kit: SiteKit, folder: Path, final: Path, user: str | None) -> None:
    kit.save(folder / KIT_FILE)
    write_start_files(kit, folder, _placement(final, None, user))


def _placement(folder: Path, data: Path | None, user: str | None) -> Placement:
    return Placement(folder, (data or folder / "data").absolute(), commands_folder(), _present_user() if user is None else user)


def _present_user() -> str:
    """Name of who runs this, or the number where it has no name, as in a container; systemd takes both."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        return str(os.getuid())


def _add_key(folder: Path, site: str) -> bytes:
    """The public half first: no private key is left whose public line cannot be had."""
    private, public = openssh_pair(new_key(), site)
    write_bytes(folder / f"{site}.pub", public)
    write_secret(folder / f"{site}.key", private)
    return public


def _check_sites(sites: Sequence[str]) -> None:
    """Sites name folders, files and SuperNodes: safe names, none twice, none that the kit uses itself."""
    folded = [site.lower() for site in sites]
    faults = [f"{site!r} is no name" for site in sites if not is_safe_name(site) or len(site) > 100]
    faults += [f"{site!r} is a name of the kit's own" for site in sites if site.lower() in _RESERVED]
    faults += [f"{site!r} stands twice, but for case" for number, site in enumerate(sites) if site.lower() in folded[:number]]
    if faults or not sites:
        raise FedsamError(
            "sites cannot be called so",
            found="; ".join(faults) or "none",
            expected="letters, digits, _ . and -, as in dataset.json or site.toml",
            fix="--sites hospital_a,hospital_b",
        )


def _kit_readme(request: KitRequest, authority: x509.Certificate, server: x509.Certificate) -> str:
    keys = "their private keys are made at the sites" if request.keys_at_site else "each holds a private key"
    values = {
        "federation": request.federation,
        "address": str(request.address),
        "keys": keys,
        "authority_end": f"{authority.not_valid_after_utc:%Y-%m-%d}",
        "server_end": f"{server.not_valid_after_utc:%Y-%m-%d}",
    }
    return filled("kit.md", values)
