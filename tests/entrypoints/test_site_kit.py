"""``fedsam_site_kit`` as a user types it."""

from pathlib import Path

import pytest

from fedsam_pipeline.entrypoints.site_kit import main


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_from_nothing_to_a_site_with_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--sites", "a, b", "--server", "localhost:8000", "-o", "kit", "--keys_at_site", "-m", "tiny_random"]) == 0
    text = capsys.readouterr().out
    assert "kit: the server, 2 site(s)\n" in text and "certificates: authority until " in text and "kept offline" in text
    assert main(["key", "kit/a"]) == 0
    assert capsys.readouterr().out.endswith(Path("kit/a/a.pub").read_text())
    assert main(["place", "kit/a", "--data", "images"]) == 0
    assert f"fedsam_raw={Path.cwd()}/images/raw" in Path("kit/a/fedsam.env").read_text()
    before = Path("kit/server/server.crt").read_bytes()
    assert main(["renew", "kit", "--also", "other.org"]) == 0
    assert Path("kit/server/server.crt").read_bytes() != before
    capsys.readouterr()
    assert main(["sign", "kit"]) == 0
    assert "kit/server/app_signature.json: for the app" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sites", "a,,b", "--server", "h:1"], "sites cannot be called so"),
        (["--sites", "a", "--server", "h"], "not HOST:PORT"),
        (["--sites", "a", "--server", "h:1", "-m", "sam9"], "unknown base model"),
        (["--sites", "a", "--server", "h:1", "--federation", "x y"], "a federation cannot be called so"),
        (["--sites", "a", "--server", "h:1", "--also", "x:1"], "not a name of a server"),
        (["--sites", "a", "--server", "h:1", "--wheelhouse"], "made from this project's sources"),
    ],
)
def test_bad_input_leaves_nothing(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["init", *arguments]) == 2
    text = capsys.readouterr().err
    assert words in text and "fix:" in text and text.count("error: ") == 1 and "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_a_present_user_that_cannot_run_a_service(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "jane doe")
    arguments = ["init", "--sites", "a", "--server", "localhost:8000", "-o", "kit", "-m", "tiny_random"]
    assert main(arguments) == 2
    assert "not the name of a user" in (text := capsys.readouterr().err) and "give --user" in text
    assert main([*arguments, "--user", "fedsam"]) == 0
    assert "User=fedsam\n" in Path("kit/a/fedsam-supernode.service").read_text()


@pytest.mark.parametrize("action", ["place", "key", "renew", "sign"])
def test_a_folder_that_is_no_kit(action: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([action, "nowhere"]) == 2
    assert "error: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
