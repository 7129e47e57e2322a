"""The sites' common key: where it goes, where it must not, and how a SuperNode learns of it."""

from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from fedsam_pipeline.entrypoints.site_kit import main
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.encrypted_sums import KEY_FILE, SiteCipher
from fedsam_pipeline.flower.deployment.common_key import add_common_key
from fedsam_pipeline.flower.deployment.kit import load_kit
from fedsam_pipeline.flower.deployment.start_files import supernode_arguments
from tests.flower.deployment.kits import make_test_kit


def test_the_first_site_makes_it_and_the_others_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit = make_test_kit(tmp_path / "kit")
    assert main(["encrypt", str(kit / "site_a")]) == 0
    text = capsys.readouterr().out
    assert "encrypted, or not at all" in text and "by a way that the server's operator has no part in" in text and "site_kit place" in text
    own = kit / "site_a" / KEY_FILE
    assert main(["encrypt", str(kit / "site_b"), "--key", str(own)]) == 0
    assert "by a way" not in capsys.readouterr().out
    copy = kit / "site_b" / KEY_FILE
    assert copy.read_bytes() == own.read_bytes()
    assert [path.stat().st_mode & 0o777 for path in (own, copy)] == [0o600, 0o600]
    assert sorted(path.parent.name for path in kit.rglob(KEY_FILE)) == ["site_a", "site_b"]
    SiteCipher.load(copy)


def test_the_supernode_is_told_once_its_files_are_placed(tmp_path: Path) -> None:
    own = make_test_kit(tmp_path / "kit") / "site_a"
    assert "encryption_key" not in (own / "start.sh").read_text()
    add_common_key(own, None)
    assert main(["place", str(own)]) == 0
    assert f'encryption_key="{own / KEY_FILE}"' in (own / "start.sh").read_text()
    arguments = supernode_arguments(load_kit(own), own, encrypts=True)
    told = parse_config_args([arguments[arguments.index("--node-config") + 1]])
    assert told == {"site": "site_a", "encryption_key": str(own / KEY_FILE)}


def test_the_server_never_gets_it(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    with pytest.raises(FedsamError, match="the server must not have the key"):
        add_common_key(kit / "server", None)
    assert not list(kit.rglob(KEY_FILE))


def test_a_key_is_not_replaced(tmp_path: Path) -> None:
    own = make_test_kit(tmp_path / "kit") / "site_a"
    add_common_key(own, None)
    with pytest.raises(FedsamError, match=r"has an encryption key[\s\S]*delete it at every site"):
        add_common_key(own, None)


def test_a_file_that_is_no_key(tmp_path: Path) -> None:
    kit = make_test_kit(tmp_path / "kit")
    with pytest.raises(FedsamError, match="cannot be used"):
        add_common_key(kit / "site_b", kit / "site_b" / "kit.json")
    with pytest.raises(FedsamError, match="cannot be read"):
        add_common_key(kit / "site_b", tmp_path / "nowhere")
    assert not list(kit.rglob(KEY_FILE))
