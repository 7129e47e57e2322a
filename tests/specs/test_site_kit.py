"""``kit.json``: what it holds goes into start-up files, a shell's among them, and must need no quoting there."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from fedsam_pipeline.specs.site_kit import SiteKit

SOUND: Mapping[str, Any] = {
    "role": "site",
    "federation": "hospitals",
    "site": "site_a",
    "sites": ("site_a",),
    "host": "fl.hospital.org",
    "port": 8000,
    "runtime_port": 9094,
    "base_model": "lite_medsam",
    "made_with": {"fedsam_pipeline": "0.1.0.dev3+g1a2b3c", "flwr": "1.41.0"},
}
NO_WORDS = ("", "a b", "$(id)", "`id`", "a;b", "a\nb", "a\n", '"', "'", "a|b", "é")


@pytest.mark.parametrize(
    "host", ["localhost", "a-b.c", "xn--bcher-kva.example", "10.0.0.5", "2001:db8::5", "::1", "::ffff:10.0.0.5", "h" * 63]
)
def test_hosts_that_a_kit_may_name(host: str) -> None:
    assert SiteKit.model_validate({**SOUND, "host": host}).host == host


@pytest.mark.parametrize(
    "host", [*NO_WORDS, "a..b", ".a", "a.", "-a", "a-", "a/b", "fe80::1%eth0", "[::1]", "h" * 64, ".".join(["h" * 63] * 4)]
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="host"):
        SiteKit.model_validate({**SOUND, "host": host})


@pytest.mark.parametrize("text", NO_WORDS)
@pytest.mark.parametrize("key", ["base_model", "fedsam_pipeline", "flwr"])
def test_text_that_a_shell_could_read_otherwise_is_refused(key: str, text: str) -> None:
    made_with = SOUND["made_with"]
    changed = {key: text} if key == "base_model" else {"made_with": {**made_with, key: text}}
    with pytest.raises(ValidationError, match=key):
        SiteKit.model_validate({**SOUND, **changed})


@pytest.mark.parametrize("key", ["federation", "site"])
def test_a_newline_at_the_end_of_a_name_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        SiteKit.model_validate({**SOUND, key: f"{SOUND[key]}\n"})
