"""``fedsam_site_kit``: makes a start-up kit, and what it needs later."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.common_key import add_common_key
from fedsam_pipeline.flower.deployment.kit import (
    KitRequest,
    make_kit,
    make_site_key,
    place_kit,
    renew_server_certificate,
    sign_installed_app,
)
from fedsam_pipeline.flower.deployment.wheelhouse import fill_wheelhouse
from fedsam_pipeline.model.registry import base_model_spec


def init(
    *,
    federation: str,
    sites: str,
    server: str,
    also: Sequence[str],
    base_model: str,
    folder: Path,
    keys_at_site: bool,
    user: str | None,
    lock: Path | None,
) -> None:
    """Makes a kit and says what to do with it.

    Args:
        federation: its name.
        sites: names, commas between them.
        server: ``HOST:PORT``.
        also: other names of the server.
        base_model: of the registry.
        folder: a new one.
        keys_at_site: make no site's private key.
        user: runs the services; ``None``: the present one.
        lock: fill a wheelhouse from this file; ``None``: no wheelhouse.
    """
    spec = base_model_spec(base_model)
    request = KitRequest(
        federation=federation,
        sites=tuple(site.strip() for site in sites.split(",")),
        address=ServerAddress.parse(server),
        also=tuple(also),
        base_model=spec.name,
        keys_at_site=keys_at_site,
        user=user,
    )
    wheels = None if lock is None else partial(fill_wheelhouse, lock=lock, spec=spec)
    authority_end, server_end = make_kit(request, folder, now=datetime.now(UTC), add_wheelhouse=wheels)
    print(f"{folder}: the server, {len(request.sites)} site(s){'' if lock is None else ', a wheelhouse'}")
    print(f"certificates: authority until {authority_end:%Y-%m-%d}, server until {server_end:%Y-%m-%d} (fedsam_site_kit renew {folder})")
    print(f"{folder / 'ca'} signs servers' certificates and the app: copy it to a medium kept offline, then delete it here")
    if keys_at_site:
        print("no private key of a site was made: fedsam_site_kit key FOLDER makes it at the site and prints the line to send back")
    print(f"next: {folder / 'README.md'} says which folder goes where; in each, README.md says what to do there")


def place(folder: Path, data: Path | None, user: str | None) -> None:
    """Writes start-up files for where a folder lies; see ``place_kit``."""
    kit = place_kit(folder, data=data, user=user)
    who = "the server" if kit.site is None else kit.site
    print(f"start-up files of {who} written for {folder.absolute()}")
    print(f"next: fedsam_doctor --kit {folder}")


def key(folder: Path) -> None:
    """Makes a site's key and prints its public line."""
    line = make_site_key(folder)
    print("send this line to the server's operator, who saves it as keys/SITE.pub and registers it; it is no secret:")
    print(line, end="")


def encrypt(folder: Path, key: Path | None) -> None:
    """Gives a site the common key of encrypted sums; see ``add_common_key``."""
    path = add_common_key(folder, key)
    print(f"{path}: from now on this site's updates leave it encrypted, or not at all")
    if key is None:
        print("bring it to each other site by a way that the server's operator has no part in; there:")
        print(f"fedsam_site_kit encrypt FOLDER --key {path.name}")
    print(f"next: fedsam_site_kit place {folder}, with the flags it had, and start the SuperNode anew")


def renew(folder: Path, also: Sequence[str]) -> None:
    """Makes the server's next certificate."""
    end = renew_server_certificate(folder, also=also, now=datetime.now(UTC))
    print(f"{folder / 'server' / 'server.crt'}: valid until {end:%Y-%m-%d}")
    print("next: copy it to the server's folder and start the SuperLink anew; sites need nothing")


def sign(folder: Path) -> None:
    """Signs the installed app anew."""
    path = sign_installed_app(folder, now=datetime.now(UTC))
    print(f"{path}: for the app of the version that is installed here")
    print("next: copy it to the server's folder and start the SuperLink anew; sites need nothing")
