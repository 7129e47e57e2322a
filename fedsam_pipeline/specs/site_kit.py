"""What commands read in a start-up kit: what a folder is for, and who vouches for the app."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedsam_pipeline.specs.document import Document, Rule

KIT_FILE = "kit.json"
SIGNATURE_FILE = "app_signature.json"

_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # RFC 1123

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]
HostName = Annotated[str, Field(pattern=rf"^({_LABEL}(\.{_LABEL})*|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$", max_length=253)]
"""a DNS name, or an IP address without brackets and zone"""
Port = Annotated[int, Field(ge=1, le=65535)]
Word = Annotated[str, Field(pattern=r"^[0-9A-Za-z.+!_\-]+$", max_length=100)]
"""a version, or a name of ours: nothing that a shell, systemd or YAML reads as more than text"""


class KitVersions(Document):
    """What the machine ran that made the kit."""

    fedsam_pipeline: Word
    flwr: Word


class SiteKit(Document):
    """One folder: the server's or a site's."""

    schema_version: Literal[1] = 1
    role: Literal["server", "site"]
    federation: str = Field(pattern=r"^[A-Za-z0-9_\-]+$", max_length=40)
    """also the name of Flower's connection; a certificate's common name has room for 64 letters, 22 of which are ours"""
    site: SiteName | None
    """``None`` in the server's folder"""
    sites: tuple[SiteName, ...] = Field(min_length=1)
    """all sites in the server's folder, the one in a site's: no site is told who else takes part"""
    host: HostName
    """at which the sites reach the server"""
    port: Port
    runtime_port: Port
    """on loopback, of a SuperNode's own processes"""
    base_model: Word
    made_with: KitVersions

    def _role_faults(self) -> Iterator[str]:
        if self.role == "site" and self.sites != (self.site,):
            yield "sites: a site's folder names that site alone"
        if self.role == "server" and self.site is not None:
            yield "site: null in the server's folder"

    rules: ClassVar[tuple[Rule, ...]] = (Rule(("role", "site", "sites"), _role_faults),)


class AppSignature(Document):
    """Of the app that sites run; public."""

    schema_version: Literal[1] = 1
    entity: str = Field(pattern=r"^fpk_[0-9a-f]{32}$")
    """the key's name in ``trusted_entities.yaml``"""
    app_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    signed_at: int = Field(ge=0)
    """seconds since 1970; part of what is signed"""
    signature: str = Field(pattern=r"^[A-Za-z0-9_\-]{86}$")
    """Ed25519, base64 for URLs without padding"""
