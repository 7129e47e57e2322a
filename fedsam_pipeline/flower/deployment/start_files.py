"""The files that start a SuperLink or a SuperNode where its kit folder lies: environment, script, systemd unit, compose file, README."""

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.encrypted_sums import KEY_FILE as COMMON_KEY
from fedsam_pipeline.files import write_bytes, write_text
from fedsam_pipeline.flower import QUIET_ENVIRONMENT
from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.specs.site_kit import SIGNATURE_FILE, SiteKit

ENVIRONMENT_FILE, START_FILE, COMPOSE_FILE, README_FILE = "fedsam.env", "start.sh", "compose.yaml", "README.md"
SUPERLINK_UNIT, SUPERNODE_UNIT = "fedsam-superlink.service", "fedsam-supernode.service"
AUTHORITY_FILE, SERVER_CERTIFICATE, SERVER_KEY = "ca.crt", "server.crt", "server.key"
TRUSTED_FILE, KEYS_FOLDER = "trusted_entities.yaml", "keys"
FLOWER_FOLDER, CONNECTIONS_FILE = "flower", "config.toml"
DATA_NAMES = ("raw", "preprocessed", "results", "cache")

_PLAIN = re.compile(r"[A-Za-z0-9_./+@-]+")
_USER = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.@\\-]*[A-Za-z0-9_.@-])?")
"""of this machine or of a directory service: jane, jane@hospital.org, HOSPITAL\\jane. systemd takes a backslash in ``User=`` as it stands;
as the last letter it would join the next line"""


@dataclass(frozen=True)
class Placement:
    """Where a kit folder is used.

    Args:
        folder: the kit folder on that machine, absolute.
        data: holds the folders of ``DATA_NAMES``, absolute.
        commands: the folder of ``flower-superlink`` and the others, absolute.
        user: runs the service.
    """

    folder: Path
    data: Path
    commands: Path
    user: str

    def __post_init__(self) -> None:
        for path in (self.folder, self.data, self.commands):
            if not (path.is_absolute() and _PLAIN.fullmatch(str(path))):
                raise FedsamError(
                    "a path cannot stand in start-up files",
                    path=path,
                    expected="an absolute path of letters, digits and _ . / + @ -",
                    fix="move the folder, or choose another with --data",
                )
        if not _USER.fullmatch(self.user):
            raise FedsamError(
                "not the name of a user",
                found=repr(self.user),
                expected=r"letters, digits and _ . - @ \, such as fedsam, jane@hospital.org or HOSPITAL\jane",
                fix="give --user",
            )


def commands_folder() -> Path:
    """Where the commands of this Python environment lie."""
    return Path(sys.executable).absolute().parent


def superlink_arguments(kit: SiteKit, folder: Path) -> list[str]:
    """The flags of our SuperLink: TLS, registered SuperNodes, our app's signature, a database that outlives the process, no installing."""
    return [
        *("--app-signature", str(folder / SIGNATURE_FILE)),
        *("--host", "::" if ServerAddress(kit.host, kit.port).is_ipv6 else "0.0.0.0"),  # all interfaces; the Control API stays closed
        *("--port", str(kit.port)),
        *("--ssl-ca-certfile", str(folder / AUTHORITY_FILE)),
        *("--ssl-certfile", str(folder / SERVER_CERTIFICATE)),
        *("--ssl-keyfile", str(folder / SERVER_KEY)),
        "--enable-supernode-auth",
        *("--database", str(folder / FLOWER_FOLDER / "superlink.db")),
        "--disable-runtime-dependency-installation",
    ]


def supernode_arguments(kit: SiteKit, folder: Path, *, encrypts: bool = False) -> list[str]:
    """The flags of ``flower-supernode``: the authority, the site's key and name, signed apps only. It installs nothing unless told to.

    Args:
        kit: of a site.
        folder: where it will be used.
        encrypts: the key of the sites' updates lies there, too.
    """
    node_config = f'site="{kit.site}"' + (f' encryption_key="{folder / COMMON_KEY}"' if encrypts else "")
    return [
        *("--superlink", str(ServerAddress(kit.host, kit.port))),
        *("--root-certificates", str(folder / AUTHORITY_FILE)),
        *("--auth-supernode-private-key", str(folder / f"{kit.site}.key")),
        *("--node-config", node_config),
        *("--trusted-entities", str(folder / TRUSTED_FILE)),
        *("--port", str(kit.runtime_port)),
    ]


def write_start_files(kit: SiteKit, folder: Path, placement: Placement) -> None:
    """Writes them into ``folder``, each atomically, over those that were there.

    Args:
        kit: what the folder is for.
        folder: where to write now; ``placement.folder`` is where they will be used.
        placement: see ``Placement``.
    """
    server = kit.role == "server"
    environment = QUIET_ENVIRONMENT | {"FLWR_HOME": str(placement.folder / FLOWER_FOLDER)}
    environment |= {f"fedsam_{name}": str(placement.data / name) for name in DATA_NAMES}
    program = ["python", "-m", "fedsam_pipeline.flower.deployment.superlink"] if server else ["flower-supernode"]
    encrypts = (folder / COMMON_KEY).exists()
    arguments = superlink_arguments(kit, placement.folder) if server else supernode_arguments(kit, placement.folder, encrypts=encrypts)
    values = {
        "federation": kit.federation,
        "site": kit.site or "",
        "who": "the SuperLink" if server else f"the SuperNode of {kit.site}",
        "address": str(ServerAddress(kit.host, kit.port)),
        "port": str(kit.port),
        "folder": str(placement.folder),
        "data": str(placement.data),
        "commands": str(placement.commands),
        "user": placement.user,
        "unit": SUPERLINK_UNIT if server else SUPERNODE_UNIT,
        "base_model": kit.base_model,
        "version": kit.made_with.fedsam_pipeline,
        "environment": "".join(f"{name}={value}\n" for name, value in environment.items()),
        "command": shlex.join([*program, *arguments]),
        "service": "superlink" if server else "supernode",
        "ports": f'    ports: ["{kit.port}:{kit.port}"]\n' if server else "",
        "register": "\n".join(f"flwr supernode register keys/{site}.pub {kit.federation} --name {site}" for site in kit.sites),
    }
    write_text(folder / ENVIRONMENT_FILE, filled("fedsam.env", values))
    write_text(folder / START_FILE, filled("start.sh", values))
    (folder / START_FILE).chmod(0o755)
    write_text(folder / values["unit"], filled("service", values))
    write_text(folder / COMPOSE_FILE, filled("compose.yaml", values))
    write_text(folder / README_FILE, filled(f"{kit.role}.md", values))
    if server:
        write_text(folder / FLOWER_FOLDER / CONNECTIONS_FILE, connection(kit, placement.folder))


def connection(kit: SiteKit, folder: Path) -> str:
    """Flower's ``config.toml`` for commands on the server: over loopback, where alone the Control API answers."""
    address = ServerAddress(kit.host, kit.port).loopback
    return (
        f'[superlink]\ndefault = "{kit.federation}"\n\n'
        f'[superlink.{kit.federation}]\naddress = "{address}"\nroot-certificates = "{folder / AUTHORITY_FILE}"\n'
    )


def read_environment(folder: Path) -> dict[str, str]:
    """The variables of ``fedsam.env``; ``FedsamError`` where the file is missing or a line of it is none of ours."""
    path = folder / ENVIRONMENT_FILE
    fix = "fedsam_site_kit place FOLDER writes it anew"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FedsamError("the environment file cannot be read", path=path, found=str(error), fix=fix) from error
    pairs = [line.partition("=") for line in lines if line.strip() and not line.startswith("#")]
    if odd := [name for name, equals, _ in pairs if not (equals and re.fullmatch(r"[A-Za-z_]\w*", name))]:
        raise FedsamError("the environment file has lines that are no NAME=VALUE", path=path, found=", ".join(odd), fix=fix)
    return {name: value for name, _, value in pairs}


def write_trusted(folder: Path, entity: str, public_line: bytes) -> None:
    """``trusted_entities.yaml``: whose apps a SuperNode runs. One line of YAML that needs no quoting beyond this."""
    write_bytes(folder / TRUSTED_FILE, entity.encode("ascii") + b": '" + public_line.strip() + b"'\n")


def filled(name: str, values: Mapping[str, str]) -> str:
    """One of the files in ``templates/``, with every ``$name`` in it replaced."""
    text = files("fedsam_pipeline.flower.deployment").joinpath("templates", name).read_text(encoding="utf-8")
    return Template(text).substitute(values)
