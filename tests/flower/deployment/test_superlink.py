"""The SuperLink answers other machines on the Fleet API alone."""

from collections.abc import Iterator

import pytest
from flwr.superlink import extensions
from flwr.superlink.main import create_app
from starlette.testclient import TestClient

from fedsam_pipeline.flower.deployment.superlink import close_control_api, from_this_machine, is_open


@pytest.fixture
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)  # put back afterwards
    close_control_api()
    yield


def answer(path: str, client: str, method: str = "POST") -> int:
    code: int = TestClient(create_app(), client=(client, 50000)).request(method, path).status_code
    return code


@pytest.mark.usefixtures("_closed")
@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/pull-task", "/docs", "/openapi.json", "/"]
)
def test_other_machines_are_refused(path: str) -> None:
    assert answer(path, "10.1.2.3") == 403


@pytest.mark.usefixtures("_closed")
def test_other_machines_reach_the_fleet_api_and_the_health_check() -> None:
    assert answer("/health", "10.1.2.3", "GET") == 200
    assert answer("/v1/fleet/register-node", "10.1.2.3") not in (200, 403, 404)  # Flower's own word on an empty request


@pytest.mark.usefixtures("_closed")
def test_this_machine_reaches_everything() -> None:
    assert answer("/v1/control/list-nodes", "127.0.0.1") not in (403, 404)
    assert answer("/openapi.json", "::1", "GET") == 200


def test_without_it_flower_answers_anyone() -> None:
    """What the middleware is for. Should this fail, Flower has learnt to ask who calls, and the middleware may go."""
    assert answer("/openapi.json", "10.1.2.3", "GET") == 200
    assert answer("/v1/control/list-nodes", "10.1.2.3") not in (401, 403)


@pytest.mark.parametrize(
    ("client", "server", "same"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.8.9.1", "10.0.0.5", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("10.0.0.5", "10.0.0.5", False),  # rootless port forwarding gives every client the container's own address
        ("::ffff:10.0.0.5", "10.0.0.5", False),
        ("10.0.0.6", "10.0.0.5", False),
        ("::ffff:10.0.0.6", "::ffff:10.0.0.5", False),
        ("2001:db8::6", "2001:db8::5", False),
        ("localhost", "10.0.0.5", False),
        ("10.0.0.6", "server.sock", False),
        ("127.0.0.1", "server.sock", True),
    ],
)
def test_who_counts_as_this_machine(client: str, server: str, same: bool) -> None:
    assert from_this_machine({"client": (client, 1), "server": (server, 2)}) is same


def test_a_connection_of_unknown_origin_is_another_machines() -> None:
    assert not from_this_machine({"client": None, "server": ("127.0.0.1", 1)})
    assert not from_this_machine({})


@pytest.mark.parametrize(
    "path", ["/v1/fleet", "/v1/fleets/x", "/V1/FLEET/x", "/v1/control/../fleet/", "//v1/fleet/x", "/healthz", "/health/", ""]
)
def test_paths_that_only_resemble_an_open_one(path: str) -> None:
    assert not is_open(path)
