"""Files are written whole or not at all, and read with clear errors."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import (
    atomic_folder,
    atomic_path,
    locked_folder,
    make_folder,
    parse_json,
    read_json,
    read_toml,
    sha256_file,
    write_bytes,
    write_json,
    write_secret,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "mask.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith("mask.nii.gz")  # writers choose a format by the suffixes
        temporary.write_bytes(b"content")
        assert not target.exists()
    assert target.read_bytes() == b"content"
    assert names(target.parent) == ["mask.nii.gz"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_an_error_of_ours_passes_through_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match=r"^mine$"), atomic_path(tmp_path / "a"):
        raise FedsamError("mine")


@pytest.mark.parametrize("below", ["a.json", "deeper/a.json"])
def test_a_file_in_the_way_is_one_clear_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "blocked").write_text("")
    with pytest.raises(FedsamError, match=r"cannot write a file[\s\S]*a folder this user may write to[\s\S]*choose another output folder"):
        write_text(tmp_path / "blocked" / below, "x")


def test_a_folder_without_permission_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(FedsamError, match=r"cannot write a file[\s\S]*no permission to write in [\s\S]*make [\s\S]* writable"):
        write_bytes(tmp_path / "a", b"")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_even_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("mkdir", "exists", "stat", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(FedsamError, match=r"cannot write a file[\s\S]*Permission denied"):
        write_bytes(tmp_path / "a", b"")


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FedsamError, match=r"cannot write a file[\s\S]*[Dd]irectory"):
        write_bytes(tmp_path / "a", b"")
    assert names(tmp_path) == ["a"]


def test_folders_are_made_or_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FedsamError, match=r"cannot write into a folder[\s\S]*file[\s\S]*choose another output folder"):
        make_folder(tmp_path / "file" / "b")


def test_json_reads_back(tmp_path: Path) -> None:
    value = {"name": "Größe", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Größe" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_nan_never_enters_a_json_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert names(tmp_path) == []


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match=r"a file is missing[\s\S]*a.json[\s\S]*run the other command"):
        read_json(tmp_path / "a.json", fix="run the other command")


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe"])
def test_what_is_not_json_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(FedsamError, match=r"cannot be read as JSON[\s\S]*a.json[\s\S]*valid JSON[\s\S]*make it anew"):
        read_json(path, fix="make it anew")


@pytest.mark.parametrize(
    "text",
    ['["\\ud800"]', '{"\\uDc00": 1}', "[" * 5000, "9" * 5000, '[1, "a]'],
    ids=["half a pair", "other half", "nested", "digits", "cut"],
)
def test_json_that_nothing_can_be_done_with_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"surrogates|nested|digits|Unterminated"):
        parse_json(text)


def test_whole_pairs_are_text() -> None:
    assert parse_json('["\\ud83d\\ude00 \\\\ud800"]') == ["\U0001f600 \\ud800"]


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000, f"a = 0x{'f' * 17}", "a = 9223372036854775808", "[b]\nc = [{d = -9223372036854775809}]", "a = 2026-99-99"]
)
def test_toml_that_nothing_can_be_done_with_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(FedsamError, match=r"a file is not TOML[\s\S]*a.toml"):
        read_toml(tmp_path / "a.toml", what="a file", fix="mend it")


def test_toml_has_whole_numbers_of_64_bits(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("a = [9223372036854775807, -9223372036854775808]")
    assert read_toml(tmp_path / "a.toml", what="a file", fix="mend it") == {"a": [2**63 - 1, -(2**63)]}


def test_a_folder_is_no_json_file(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="cannot be read as JSON"):
        read_json(tmp_path)


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_folder_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c"
    with atomic_folder(target) as staging:
        assert not target.exists() and not list(staging.iterdir())
        (staging / "file").write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["a", "a/b", "a/b/c", "a/b/c/file"]
    with pytest.raises(FedsamError, match="a folder exists already"), atomic_folder(target):
        pass


def test_a_failure_leaves_no_folder_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a" / "b" / "c") as staging:
        (staging / "file").write_text("x")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FedsamError, match="cannot write a file"), atomic_folder(tmp_path / "file" / "b"):
        pass


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000])
def test_json_that_no_parser_takes_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FedsamError, match="cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_a_locked_folder_is_busy_until_it_is_left(tmp_path: Path) -> None:
    second = locked_folder(tmp_path, "somebody is here", fix="come back")
    with locked_folder(tmp_path), pytest.raises(FedsamError, match=r"somebody is here[\s\S]*fix: *come back"), second:
        pytest.fail("two are in")
    with locked_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(FedsamError, match=r"a folder cannot be locked[\s\S]*a folder that this user may write to"), locked_folder(tmp_path):
        pytest.fail("nothing was locked")


def test_a_secret_is_its_owners_alone_and_replaced_whole(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for content in (b"first", b"second"):
            write_secret(tmp_path / "a.key", content)
            assert (tmp_path / "a.key").read_bytes() == content
            assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert names(tmp_path) == ["a.key"]
