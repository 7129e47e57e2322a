"""Zips from elsewhere: what could harm when it is unpacked is refused before anything is read."""

import stat
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.plain_zip import open_plain_zip, write_plain_zip


def refused(path: Path, words: str) -> None:
    with pytest.raises(FedsamError, match=words) as caught, open_plain_zip(path, fix="ask again"):
        pass
    assert "fix:      ask again" in str(caught.value)


def zipped(path: Path, *infos: zipfile.ZipInfo, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        for info in infos:
            archive.writestr(info, content, compress_type=info.compress_type)
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/passwd", "absolute path"),
        ("\\share\\x", "absolute path"),
        ("C:\\x", "absolute path"),
        ("c:x", "absolute path"),
        ("../x", "out of its folder"),
        ("a/../../x", "out of its folder"),
        ("a\\..\\x", "out of its folder"),
        ("a/..", "out of its folder"),
        ("./x", "no plain name"),
        ("a//b", "no plain name"),
        (".hidden", "no plain name"),
        ("a/.b", "no plain name"),
        ("-rf", "no plain name"),
        ("a b", "no plain name"),
        ("é", "no plain name"),
        ("a\nb", "no plain name"),
        ("\x1b[31m", "no plain name"),
        ("CON:", "no plain name"),
        ("a/", "a folder"),
    ],
)
def test_unsafe_names_are_refused(tmp_path: Path, name: str, words: str) -> None:
    refused(zipped(tmp_path / "a.zip", zipfile.ZipInfo(name), content=b""), words)


def test_a_name_that_ends_at_a_zero_byte_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", zipfile.ZipInfo("goodZ/../x"))
    path.write_bytes(path.read_bytes().replace(b"goodZ/../x", b"good\0/../x"))
    refused(path, "out of its folder")


@pytest.mark.parametrize(
    ("mode", "words"), [(stat.S_IFLNK | 0o777, "symbolic link"), (stat.S_IFDIR | 0o755, "a folder"), (stat.S_IFIFO | 0o644, "no regular")]
)
def test_links_folders_and_pipes_are_refused(tmp_path: Path, mode: int, words: str) -> None:
    info = zipfile.ZipInfo("a")
    info.external_attr = mode << 16
    refused(zipped(tmp_path / "a.zip", info), words)


def test_names_that_meet_on_some_file_systems_are_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "a.zip", zipfile.ZipInfo("a/b"), zipfile.ZipInfo("a/b")), "'a/b': twice")
    refused(zipped(tmp_path / "b.zip", zipfile.ZipInfo("a/b"), zipfile.ZipInfo("A/b")), "differs from 'a/b' in letter case only")


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("zeros")
    info.compress_type = zipfile.ZIP_DEFLATED
    refused(zipped(tmp_path / "a.zip", info, content=bytes(1 << 22)), "'zeros': compressed")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", zipfile.ZipInfo("a"))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(path, "encrypted")


def test_every_fault_is_counted(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "a.zip", *(zipfile.ZipInfo(f"../{number}") for number in range(9))), "9 faults, such as")


def test_members_that_claim_more_than_the_file_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", zipfile.ZipInfo("a"), content=b"12345678")
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 20
    content[place : place + 8] = (1 << 30).to_bytes(4, "little") * 2
    path.write_bytes(content)
    refused(path, "members of 1,073,741,824 bytes in a file of")


def test_members_that_share_their_bytes_are_no_bomb(tmp_path: Path) -> None:
    """Many entries of the directory that point to the same content (Fifield, A better zip bomb, WOOT 2019)."""
    path = zipped(tmp_path / "a.zip", zipfile.ZipInfo("a000"), content=bytes(10_000))
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entries = b"".join(content[start:end].replace(b"a000", f"a{number:03d}".encode()) for number in range(200))
    tail = bytearray(content[end:])
    tail[8:10] = tail[10:12] = (200).to_bytes(2, "little")
    tail[12:16] = len(entries).to_bytes(4, "little")
    path.write_bytes(content[:start] + entries + bytes(tail))
    refused(path, "members of 2,000,000 bytes in a file of")


def test_no_zip_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "a zip cannot be read")
    refused(tmp_path, "a zip cannot be read")
    with pytest.raises(FedsamError, match="a file is missing"), open_plain_zip(tmp_path / "gone", fix=""):
        pass


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    write_plain_zip(tmp_path / "a.zip", {"a": b"good content", "b": b"more of it"})
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(b"more of it", b"less of it"))
    with open_plain_zip(tmp_path / "a.zip", fix="ask again") as archive:
        assert archive.read("a", limit=12) == b"good content"
        with pytest.raises(FedsamError, match=r"a zip cannot be read[\s\S]*b: Bad CRC-32"):
            archive.read("b", limit=12)
        with pytest.raises(FedsamError, match=r"too large[\s\S]*a, 12 bytes[\s\S]*at most 11"):
            archive.read("a", limit=11)


NAMES = st.lists(
    st.from_regex(r"[a-z0-9_]{1,8}(/[a-z0-9_.]{1,3}[a-z0-9])?", fullmatch=True).filter(lambda name: "/." not in name), unique=True
)


@given(names=NAMES, data=st.data())
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("zip")
    members: dict[str, bytes | Path] = {name: data.draw(st.binary(max_size=50)) for name in names}
    write_plain_zip(folder / "a.zip", members)
    with open_plain_zip(folder / "a.zip", fix="") as archive:
        assert {name: archive.read(name, limit=50) for name in archive.sizes} == members
    for number, (name, content) in enumerate(members.items()):  # from files, at another time, under other permissions
        assert isinstance(content, bytes)
        (folder / str(number)).write_bytes(content)
        (folder / str(number)).chmod(0o400)
        members[name] = folder / str(number)
    write_plain_zip(folder / "b.zip", members)
    assert (folder / "a.zip").read_bytes() == (folder / "b.zip").read_bytes()


EXTREMES = (b"\xff" * 2, b"\xff" * 4, b"\xff" * 8, b"\0\0\0\x80", b"\0" * 7 + b"\x80", b"\0" * 4, b"\x01\0\0\0")
"""lengths, offsets and counts that are nothing, one, or as large as can be"""


@pytest.mark.parametrize("extreme", EXTREMES, ids=bytes.hex)
def test_extreme_numbers_anywhere_are_refused_or_change_nothing(tmp_path: Path, extreme: bytes) -> None:
    members: dict[str, bytes | Path] = {"a": b"hello", "b": b"world"}
    write_plain_zip(tmp_path / "a.zip", members)
    content = (tmp_path / "a.zip").read_bytes()
    for place in range(len(content)):
        changed = content[:place] + extreme + content[place + len(extreme) :]
        (tmp_path / "b.zip").write_bytes(changed)
        try:
            with open_plain_zip(tmp_path / "b.zip", fix="") as archive:
                assert all(len(archive.read(name, limit=1000)) <= len(changed) for name in archive.sizes)
        except FedsamError:
            pass


@pytest.mark.parametrize(("size", "offset"), [(2**63, 0), (2**64 - 1, 0), (2**40, 0), (2**62, 2**62), (0, 2**64 - 1)])
def test_a_directory_of_any_size_allocates_nothing(tmp_path: Path, size: int, offset: int) -> None:
    """Zip64: numbers of eight bytes."""
    write_plain_zip(tmp_path / "a.zip", {"a": b"hello"})
    content = (tmp_path / "a.zip").read_bytes()
    end = content.rindex(b"PK\x05\x06")
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "b.zip").write_bytes(content[:end] + record + locator + tail)
    try:
        with open_plain_zip(tmp_path / "b.zip", fix="") as archive:
            assert not archive.sizes
    except FedsamError as error:
        assert "a zip cannot be read" in str(error)
