"""Start-up files: Flower's own parsers take them, a shell runs them, nothing calls home."""

import configparser
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.flower_config import parse_superlink_connection
from flwr.superlink.cli import flower_superlink
from flwr.supernode.cli import flower_supernode

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower import QUIET_ENVIRONMENT
from fedsam_pipeline.flower.deployment.kit import load_kit
from fedsam_pipeline.flower.deployment.start_files import Placement, read_environment, supernode_arguments
from fedsam_pipeline.flower.deployment.superlink import own_flag
from fedsam_pipeline.specs.site_kit import SIGNATURE_FILE
from tests.flower.deployment.kits import make_test_kit

SUPERLINK = sys.modules[flower_superlink.__module__]
SUPERNODE = sys.modules[flower_supernode.__module__]


def command_of(folder: Path) -> list[str]:
    line = next(line for line in (folder / "start.sh").read_text().splitlines() if line.startswith("exec "))
    return shlex.split(line)[1:]


def test_flowers_parser_takes_the_superlinks_flags(tmp_path: Path) -> None:
    server = make_test_kit(tmp_path / "kit", port=8123) / "server"
    program, flags = command_of(server)[:3], command_of(server)[3:]
    assert program == ["python", "-m", "fedsam_pipeline.flower.deployment.superlink"]
    signature, flags = own_flag(flags)
    assert signature == server / SIGNATURE_FILE and signature.is_file()
    parsed = SUPERLINK._parse_args_run_superlink().parse_args(flags)
    assert (parsed.host, parsed.port, parsed.enable_supernode_auth, parsed.insecure) == ("0.0.0.0", 8123, True, False)
    assert parsed.runtime_dependency_install is False
    assert Path(parsed.database) == server / "flower" / "superlink.db"
    for path in (parsed.ssl_ca_certfile, parsed.ssl_certfile, parsed.ssl_keyfile):
        assert Path(path).is_file()


def test_flowers_parser_takes_the_supernodes_flags(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit", host="localhost")
    program, *flags = command_of(kit / "site_b")
    parsed = SUPERNODE._parse_args_run_supernode().parse_args(flags)
    assert (program, parsed.superlink, parsed.insecure) == ("flower-supernode", "localhost:8000", False)
    assert parsed.runtime_dependency_install is False
    assert parsed.node_config == 'site="site_b"'
    assert Path(parsed.root_certificates).read_bytes() == (kit / "ca" / "ca.crt").read_bytes()
    keys = SUPERNODE._try_setup_client_authentication(parsed)
    assert isinstance(keys[0].curve, ec.SECP384R1)
    trusted = SUPERNODE._try_obtain_trusted_entities(parsed.trusted_entities)
    SUPERNODE._validate_public_keys_ed25519(trusted)
    assert len(trusted) == 1
    assert parsed.port == 1 + SUPERNODE._parse_args_run_supernode().parse_args(command_of(kit / "site_a")[1:]).port


def test_an_ipv6_server(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit", host="2001:db8::5")
    parsed = SUPERLINK._parse_args_run_superlink().parse_args(own_flag(command_of(kit / "server")[3:])[1])
    assert parsed.host == "::"
    assert supernode_arguments(load_kit(kit / "site_a"), kit / "site_a")[1] == "[2001:db8::5]:8000"
    connections = tomllib.loads((kit / "server" / "flower" / "config.toml").read_text())
    assert connections["superlink"]["trial"]["address"] == "[::1]:8000"


def test_flower_finds_its_connection(tmp_path: Path) -> None:
    server = make_test_kit(tmp_path / "kit", host="fl.hospital.org") / "server"
    connections = tomllib.loads((server / "flower" / "config.toml").read_text())["superlink"]
    assert connections["default"] == "trial"
    connection = parse_superlink_connection(connections["trial"], "trial")
    assert (connection.address, connection.insecure) == ("127.0.0.1:8000", False)
    assert connection.root_certificates and Path(connection.root_certificates).is_file()


@pytest.mark.parametrize("folder", ["server", "site_a"])
def test_the_environment_is_what_a_shell_and_systemd_read(folder: str, tmp_path: Path) -> None:
    own = make_test_kit(tmp_path / "kit") / folder
    environment = read_environment(own)
    assert environment.items() >= QUIET_ENVIRONMENT.items()
    assert environment["FLWR_HOME"] == str(own / "flower")
    assert {name: environment[f"fedsam_{name}"] for name in ("raw", "cache")} == {"raw": f"{own}/data/raw", "cache": f"{own}/data/cache"}
    script = f"set -a; . {own}/fedsam.env; set +a; env"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()).items() >= environment.items()


def test_the_start_script_gives_the_program_its_flags_and_environment(tmp_path: Path) -> None:
    own = make_test_kit(tmp_path / "kit") / "site_a"
    stub = tmp_path / "flower-supernode"
    stub.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\necho "$FLWR_TELEMETRY_ENABLED $fedsam_raw"\numask\n')
    stub.chmod(0o755)
    script = (own / "start.sh").read_text()
    (line,) = [line for line in script.splitlines() if line.startswith("PATH=")]
    (own / "start.sh").write_text(script.replace(line, f'PATH="{tmp_path}:$PATH"'))
    done = subprocess.run([own / "start.sh"], capture_output=True, text=True, check=True, umask=0o022)
    *flags, environment, mask = done.stdout.splitlines()
    assert flags == supernode_arguments(load_kit(own), own)
    assert environment == f"0 {own}/data/raw"
    assert int(mask, 8) == 0o077  # what it writes is for its own user alone, as under systemd
    assert line == f'PATH="{Path(sys.executable).parent}:$PATH"'


@pytest.mark.parametrize(("folder", "unit"), [("server", "fedsam-superlink.service"), ("site_a", "fedsam-supernode.service")])
def test_the_unit_starts_the_script_and_again_after_a_crash(folder: str, unit: str, tmp_path: Path) -> None:
    own = make_test_kit(tmp_path / "kit") / folder
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(own / unit)
    assert parser["Service"]["ExecStart"] == f"{own}/start.sh" and os.access(own / "start.sh", os.X_OK)
    assert parser["Service"]["Restart"] == "always" and parser["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize(("folder", "service", "ports"), [("server", "superlink", ["8000:8000"]), ("site_a", "supernode", None)])
def test_the_compose_file(folder: str, service: str, ports: list[str] | None, tmp_path: Path) -> None:
    own = make_test_kit(tmp_path / "kit") / folder
    content = yaml.safe_load((own / "compose.yaml").read_text())["services"]
    assert list(content) == [service]
    assert content[service]["command"] == ["/bin/sh", f"{own}/start.sh"]
    assert content[service]["volumes"] == [f"{own}:{own}", f"{own}/data:{own}/data"]
    assert content[service].get("ports") == ports


def test_no_template_is_left_unfilled(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    readme = (kit / "server" / "README.md").read_text()
    assert "flwr supernode register keys/site_a.pub trial --name site_a\n" in readme
    assert "$" not in readme.replace("$fedsam_raw", "")
    assert "$" not in (kit / "site_a" / "README.md").read_text().replace("$fedsam_raw", "")


def test_an_environment_file_that_was_damaged(tmp_path: Path) -> None:
    own = make_test_kit(tmp_path / "kit") / "site_a"
    (own / "fedsam.env").write_text("fedsam_raw=/data\nrm -rf\n")
    with pytest.raises(FedsamError, match=r"no NAME=VALUE") as caught:
        read_environment(own)
    assert caught.value.fix and "fedsam_site_kit place" in caught.value.fix
    (own / "fedsam.env").unlink()
    with pytest.raises(FedsamError, match="cannot be read"):
        read_environment(own)


def test_a_newline_at_the_end_of_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="cannot stand in start-up files"):
        Placement(tmp_path, tmp_path / "data\n", tmp_path, "fedsam")
