"""``HOST:PORT``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.provisional import domains
from pydantic import TypeAdapter

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.address import ServerAddress, is_host
from fedsam_pipeline.specs.site_kit import HostName


@pytest.mark.parametrize(
    "text", ["fl.hospital.org:8000", "localhost:1", "10.0.0.5:65535", "[2001:db8::5]:8000", "a-b:80", "xn--bcher-kva.example:8"]
)
def test_an_address_is_read_and_written_alike(text: str) -> None:
    assert str(ServerAddress.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":8000", "host", "host:", "host:0", "host:65536", "host:-1", "host:8000:", "host: 8000", "host:80x", "host:８０"),
        *("https://host:8000", "host/path:8000", "a b:80", "-a:80", "a-:80", "a..b:80", "1.2.3.4.5:80", "1.2.3:80", "300.0.0.1:80"),
        *("2001:db8::5:8000", "[host]:8000", "[10.0.0.1]:80", "[]:80", "[fe80::1%eth0]:80", "a" * 64 + ":80", "ho$t:80", 'ho"st:80'),
        *("evil\n:80", "a\n.b:80", "[::1\n]:80", "10.0.0.1\n:80", "host:80\n"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(FedsamError, match="not HOST:PORT") as caught:
        ServerAddress.parse(text)
    assert caught.value.found == text and caught.value.fix


def test_the_server_asks_itself_over_loopback() -> None:
    assert str(ServerAddress.parse("fl.hospital.org:8000").loopback) == "127.0.0.1:8000"
    assert str(ServerAddress.parse("[2001:db8::5]:8000").loopback) == "[::1]:8000"


def test_a_newline_at_the_end_makes_no_host() -> None:
    assert is_host("fl.hospital.org") and not is_host("fl.hospital.org\n")


@given(st.one_of(domains(), st.ip_addresses().map(str)))
def test_kit_json_takes_every_host_that_an_address_may_have(host: str) -> None:
    assert is_host(host) and TypeAdapter(HostName).validate_python(host) == host
