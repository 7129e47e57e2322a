"""``fedsam_doctor --kit``: keys, certificates, the server's answer and the clock."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.encrypted_sums import KEY_FILE
from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.certificates import (
    belongs_to,
    covers,
    issued_by,
    load_certificate,
    load_node_key,
    load_node_public_key,
    load_tls_key,
    names_of,
    public_bytes,
)
from fedsam_pipeline.flower.deployment.kit import AUTHORITY_FOLDER, AUTHORITY_KEY, SIGNING_KEY
from fedsam_pipeline.flower.deployment.reach import MAX_AHEAD_S, MAX_BEHIND_S, Greeting, GreetingError, Refusal
from fedsam_pipeline.flower.deployment.signing import signature_of_installed_app
from fedsam_pipeline.flower.deployment.start_files import (
    AUTHORITY_FILE,
    FLOWER_FOLDER,
    KEYS_FOLDER,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    START_FILE,
    TRUSTED_FILE,
)
from fedsam_pipeline.pipeline.doctor_findings import DoctorFinding, from_error, ok, problem, unchecked, warning
from fedsam_pipeline.specs.site_kit import SIGNATURE_FILE, SiteKit

SOON = timedelta(days=30)
"""a certificate that expires within this time is worth a warning"""
CLOCK_AHEAD_S, CLOCK_BEHIND_S = MAX_AHEAD_S / 2, MAX_BEHIND_S / 5
"""from here on a warning"""
RENEW = "fedsam_site_kit renew KIT where ca/ lies, copy server/server.crt to the server, start the SuperLink anew"


class Greet(Protocol):
    """``reach.greet``, or what a test puts in its place."""

    def __call__(
        self, address: ServerAddress, authority: Path, *, clock: Callable[[], datetime], through: ServerAddress | None = None
    ) -> Greeting: ...


@dataclass(frozen=True)
class KitChecks:
    """The checks on one kit folder.

    Args:
        kit: what ``kit.json`` says.
        folder: the server's or the site's.
        environment: what ``fedsam.env`` says.
        clock: the time now, with a time zone.
        greet: asks the server.
        registered: asks the SuperLink on this machine for its nodes.
    """

    kit: SiteKit
    folder: Path
    environment: dict[str, str]
    clock: Callable[[], datetime]
    greet: Greet
    registered: Callable[[ServerAddress, Path], dict[bytes, str]]

    @property
    def address(self) -> ServerAddress:
        """Where the sites reach the server."""
        return ServerAddress(self.kit.host, self.kit.port)

    def findings(self) -> Iterator[DoctorFinding]:
        """All of them."""
        yield from self._kit()
        authority = None
        try:
            authority = load_certificate(self.folder / AUTHORITY_FILE)
        except FedsamError as error:
            yield from_error("authority", error, fix="copy ca.crt again from the kit")
        else:
            yield from self._authority(authority)
        yield from self._server_files(authority) if self.kit.role == "server" else self._site_files()
        yield from self._common_key()
        if authority is None:
            yield unchecked("server", "without the authority's certificate its answer cannot be trusted")
            yield unchecked("clock", "the server was not asked for the time")
        else:
            yield from self._server()

    def _kit(self) -> Iterator[DoctorFinding]:
        made, here = self.kit.made_with, version("flwr")
        if here.split(".")[:2] != made.flwr.split(".")[:2]:
            text = f"flwr {here} here, {made.flwr} where the kit was made: Flower refuses peers of another minor version"
            yield problem("kit", text, f"pip install flwr[simulation]=={made.flwr}, as in requirements.lock")
        if (ours := version("fedsam-pipeline")) != made.fedsam_pipeline:
            fix = "install one version everywhere"
            yield warning("kit", f"fedsam-pipeline {ours} here, {made.fedsam_pipeline} where the kit was made", fix)
        if self.environment.get("FLWR_HOME") != str(self.folder.absolute() / FLOWER_FOLDER):
            place = f"fedsam_site_kit place {self.folder}"
            yield problem("kit", "the start-up files were written for another folder", place)
        else:
            who = "the server" if self.kit.site is None else self.kit.site
            yield ok("kit", f"{who} of {self.kit.federation}, server at {self.address}")
        for around in (self.folder, self.folder.parent / AUTHORITY_FOLDER):
            for kept in (around / name for name in (AUTHORITY_KEY, SIGNING_KEY) if (around / name).exists()):
                text = f"a private key that belongs offline lies on this machine: {kept}"
                yield warning("authority", text, "copy the folder ca to a medium that is kept offline, then delete it here")

    def _authority(self, authority: x509.Certificate) -> Iterator[DoctorFinding]:
        digest = authority.fingerprint(hashes.SHA256()).hex()
        yield from self._dates("authority", authority, "make a new kit; every site needs the new ca.crt", f", SHA-256 {digest}")

    def _dates(self, subject: str, certificate: x509.Certificate, fix: str, also: str = "") -> Iterator[DoctorFinding]:
        now, start, end = self.clock(), certificate.not_valid_before_utc, certificate.not_valid_after_utc
        until = f"valid {start:%Y-%m-%d} to {end:%Y-%m-%d}"
        if now < start:
            text = f"certificate {until}; this clock says {now:%Y-%m-%d %H:%M}"
            yield problem(subject, text, "set this machine's clock, by NTP for example")
        elif now >= end:
            yield problem(subject, f"certificate expired: {until}", fix)
        elif end - now < SOON:
            yield warning(subject, f"certificate expires in {(end - now).days} days: {until}", fix)
        else:
            yield ok(subject, f"certificate {until}{also}")

    def _server_files(self, authority: x509.Certificate | None) -> Iterator[DoctorFinding]:
        certificate = None
        try:
            certificate = load_certificate(self.folder / SERVER_CERTIFICATE)
        except FedsamError as error:
            yield from_error("certificate", error, fix=RENEW)
        else:
            yield from self._certificate(certificate, authority)
        path = self.folder / SERVER_KEY
        yield from self._mode("key", path, "copy it again from the kit")
        if path.is_file() and certificate is not None:
            try:
                if not belongs_to(certificate, load_tls_key(path)):
                    yield problem("key", "server.key is not the key of server.crt", "copy both from one kit")
            except FedsamError as error:
                yield from_error("key", error)
        try:
            signature = signature_of_installed_app(self.folder / SIGNATURE_FILE)
        except FedsamError as error:
            yield from_error("app", error)
        else:
            yield ok("app", f"the signature of {signature.entity} is of the app that is installed here")

    def _certificate(self, certificate: x509.Certificate, authority: x509.Certificate | None) -> Iterator[DoctorFinding]:
        yield from self._dates("certificate", certificate, RENEW)
        if not covers(certificate, self.kit.host):
            text = f"the certificate is for {', '.join(names_of(certificate))}, sites ask for {self.kit.host}"
            yield problem("certificate", text, RENEW)
        if authority is not None and not issued_by(certificate, authority):
            yield problem("certificate", "ca.crt did not sign server.crt", "copy both from one kit, or: " + RENEW)

    def _site_files(self) -> Iterator[DoctorFinding]:
        path = self.folder / f"{self.kit.site}.key"
        yield from self._mode("key", path, f"fedsam_site_kit key {self.folder}")
        if path.is_file():
            try:
                key = load_node_key(path)
                if load_node_public_key(self.folder / f"{self.kit.site}.pub") != public_bytes(key.public_key()):
                    fix = f"delete both, then fedsam_site_kit key {self.folder}, and send the new line"
                    yield problem("key", f"{self.kit.site}.pub is not the public half of {path.name}", fix)
            except FedsamError as error:
                yield from_error("key", error)
        if not (self.folder / TRUSTED_FILE).is_file():
            text = f"{TRUSTED_FILE} is missing: the SuperNode does not start"
            yield problem("app key", text, "copy it again from the kit")

    def _common_key(self) -> Iterator[DoctorFinding]:
        """Of encrypted sums, where this folder has one."""
        path = self.folder / KEY_FILE
        if not path.is_file():
            return
        if self.kit.role == "server":
            yield problem(
                "encryption", f"{path.name} opens every site's update, and lies at the server", "delete it; make a new key at a site"
            )
            return
        yield from self._mode("encryption", path, f"fedsam_site_kit encrypt {self.folder}")
        start = self.folder / START_FILE
        if not start.is_file() or b"encryption_key=" not in start.read_bytes():
            text = f"start.sh does not name {path.name}: this site's updates would leave it in plain"
            yield problem("encryption", text, f"fedsam_site_kit place {self.folder}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        yield ok("encryption", f"{path.name} begins with SHA-256 {digest}: it must be the same at all sites")

    def _mode(self, subject: str, path: Path, fix: str) -> Iterator[DoctorFinding]:
        try:
            mode = path.stat().st_mode & 0o777
        except OSError as error:
            yield problem(subject, f"{path.name}: {error.strerror}", fix or "check the path")
            return
        if mode & 0o077:
            yield problem(subject, f"{path.name} has mode {mode:03o}: others may read it", f"chmod 600 {path}")
        else:
            yield ok(subject, f"{path.name}, mode {mode:03o}")

    def _server(self) -> Iterator[DoctorFinding]:
        at_server = self.kit.role == "server"
        through = self.address.loopback if at_server else None
        authority = self.folder / AUTHORITY_FILE
        try:
            greeting = self.greet(self.address, authority, clock=self.clock, through=through)
        except GreetingError as error:
            yield problem("server", *self._refused(error, through or self.address))
            yield unchecked("clock", "the server did not tell the time")
            if at_server:
                yield unchecked("sites", "whether they are registered: the SuperLink did not answer")
            return
        if at_server:
            yield ok("server", f"answers on this machine with a certificate for {self.kit.host}; whether sites reach it, they must try")
            yield unchecked("clock", "sites measure theirs against this one: keep it on time (NTP)")
            yield from self._registered(authority)
            return
        yield ok("server", f"{self.address} answers with a certificate of this authority for {self.kit.host}")
        yield from self._dates("certificate", greeting.certificate, "tell the server's operator: fedsam_site_kit renew KIT")
        yield self._clock(greeting.ahead_s)
        yield unchecked("registered", "only the server knows whether it has this site's key: fedsam_doctor --kit FOLDER there")

    def _refused(self, error: GreetingError, asked: ServerAddress) -> tuple[str, str]:
        """What is wrong, and the fix."""
        running = f"{self.folder / 'start.sh'}, or systemctl status fedsam-superlink"
        if error.refusal is Refusal.UNREACHABLE:
            away = f"check name, network and firewall (outgoing TCP to {asked}); ask the operator whether the SuperLink runs"
            return f"{asked} cannot be reached: {error}", running if self.kit.role == "server" else away
        if error.refusal is Refusal.NO_TLS:
            return f"{asked} speaks no TLS: {error}", "check host and port, and that no proxy stands between"
        if error.refusal is Refusal.EXPIRED:
            return f"the server's certificate has expired: {error}", f"the operator: {RENEW}"
        if error.refusal is Refusal.NOT_YET_VALID:
            return f"the server's certificate is not valid yet: {error}", "set this machine's clock"
        if error.refusal is Refusal.OTHER_NAME:
            return f"the server's certificate is for another name: {error}", f"the operator: {RENEW}, with --also {self.kit.host}"
        return f"the server's certificate is not of this authority: {error}", "compare ca.crt with the operator's; trust no other"

    def _clock(self, ahead_s: float | None) -> DoctorFinding:
        if ahead_s is None:
            return unchecked("clock", "the server's answer has no date")
        side = "ahead of" if ahead_s > 0 else "behind"
        text = (
            f"{abs(ahead_s):.0f} s {side} the server's, give or take one; Flower takes {MAX_AHEAD_S:.0f} ahead, {MAX_BEHIND_S:.0f} behind"
        )
        fix = "set this machine's clock, by NTP for example"
        if ahead_s > MAX_AHEAD_S or -ahead_s > MAX_BEHIND_S:
            return problem("clock", text, fix)
        if ahead_s > CLOCK_AHEAD_S or -ahead_s > CLOCK_BEHIND_S:
            return warning("clock", text, fix)
        return ok("clock", text)

    def _registered(self, authority: Path) -> Iterator[DoctorFinding]:
        try:
            known = self.registered(self.address.loopback, authority)
        except FedsamError as error:
            yield from_error("sites", error)
            return
        for site in self.kit.sites:
            path = self.folder / KEYS_FOLDER / f"{site}.pub"
            command = f"flwr supernode register {path} {self.kit.federation} --name {site}"
            if not path.is_file():
                text = f"{site}: its public key has not come yet"
                yield warning("sites", text, f"at the site: fedsam_site_kit key FOLDER; save the line as {path}, then {command}")
                continue
            try:
                status = known.get(load_node_public_key(path).strip())
            except FedsamError as error:
                yield from_error("sites", error)
                continue
            if status is None:
                yield problem("sites", f"{site} is not registered", f"set -a; . {self.folder / 'fedsam.env'}; set +a; {command}")
            else:
                yield ok("sites", f"{site}: {status}")
