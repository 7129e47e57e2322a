"""Reading and writing images and masks, and every reason to refuse one."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings

from fedsam_pipeline.dataset.image_files import voxels_of
from fedsam_pipeline.dataset.volume import (
    FILE_ENDINGS,
    Geometry,
    Volume,
    from_canonical,
    part_from_canonical,
    read_image,
    read_labels,
    split_file_ending,
    to_canonical,
    write_image,
    write_labels,
)
from fedsam_pipeline.errors import FedsamError
from tests.dataset.test_geometry import as_itk, geometries

sitk: Any = SimpleITK
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
GRID = Geometry((3, 4, 5), (3.0, 1.0, 0.5), (-10.0, 20.0, 30.0), IDENTITY)


def random_image(generator_seed: int = 0) -> Any:
    return np.random.default_rng(generator_seed).normal(size=GRID.size).astype(np.float32)


def header(path: Path) -> bytearray:
    content = path.read_bytes()
    return bytearray(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)


@pytest.mark.parametrize("ending", FILE_ENDINGS)
def test_round_trip_in_every_format(tmp_path: Path, ending: str) -> None:
    channels = [random_image(0), random_image(1)]
    paths = [tmp_path / f"case_{number:04d}{ending}" for number in range(2)]
    for path, channel in zip(paths, channels, strict=True):
        write_image(path, channel, GRID)
    volume = read_image(paths)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, np.stack(channels))
    assert volume.geometry.same_grid(GRID, 1e-3)
    labels = np.arange(60, dtype=np.int64).reshape(GRID.size) % 3
    write_labels(tmp_path / f"case{ending}", labels, GRID)
    read = read_labels(tmp_path / f"case{ending}")
    assert read.array.dtype == np.int16
    assert np.array_equal(read.array, labels)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(geometry=geometries())
def test_rotated_grids_keep_their_corners(tmp_path: Path, geometry: Geometry) -> None:
    labels = np.zeros(geometry.size, dtype=np.uint8)
    for ending in (".nii.gz", ".nrrd", ".mha"):
        path = tmp_path / f"case{ending}"
        write_labels(path, labels, geometry)
        assert read_labels(path).geometry.same_grid(geometry, 1e-3), ending


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(geometry=geometries())
def test_a_nifti_mask_takes_the_placement_bytes_of_its_image(tmp_path: Path, geometry: Geometry) -> None:
    image, mask = tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz"
    write_image(image, np.zeros(geometry.size, dtype=np.float32), geometry)
    read = read_image([image]).geometry
    write_labels(mask, np.zeros(read.size, dtype=np.uint8), read, like=image)
    for start, stop in ((76, 108), (123, 124), (252, 256), (256, 280), (280, 328)):
        assert header(mask)[start:stop] == header(image)[start:stop]
    assert read_labels(mask).geometry == read


def test_placement_is_taken_from_a_big_endian_image(tmp_path: Path) -> None:
    turned = Geometry(GRID.size, GRID.spacing, GRID.origin, (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
    little, big, mask = (tmp_path / name for name in ("little.nii", "big.nii", "mask.nii"))
    write_image(little, random_image(), turned)
    content = header(little)
    fields = [(0, 1, 4), (40, 8, 2), (70, 2, 2), (76, 8, 4), (108, 3, 4), (252, 2, 2), (256, 18, 4), (352, content[352:].__len__() // 4, 4)]
    for offset, count, width in fields:
        for start in range(offset, offset + count * width, width):
            content[start : start + width] = content[start : start + width][::-1]
    big.write_bytes(content)
    image = read_image([big])
    assert np.array_equal(image.array[0], random_image())
    write_labels(mask, np.ones(GRID.size, dtype=np.uint8), image.geometry, like=big)
    assert read_labels(mask).geometry == image.geometry
    assert struct.unpack_from("<12f", header(mask), 280) == struct.unpack_from(">12f", content, 280)


def test_like_of_another_format_or_size(tmp_path: Path) -> None:
    write_image(tmp_path / "image.nrrd", random_image(), GRID)
    write_labels(tmp_path / "mask.nii.gz", np.ones(GRID.size, dtype=np.uint8), GRID, like=tmp_path / "image.nrrd")
    assert read_labels(tmp_path / "mask.nii.gz").geometry.same_grid(GRID)
    write_image(tmp_path / "image.nii", random_image(), GRID)
    other = Geometry((4, 4, 4), GRID.spacing, GRID.origin, IDENTITY)
    with pytest.raises(ValueError, match="voxels"):
        write_labels(tmp_path / "other.nii.gz", np.ones(other.size, dtype=np.uint8), other, like=tmp_path / "image.nii")
    assert not (tmp_path / "other.nii.gz").exists()


def test_large_class_numbers_take_uint16(tmp_path: Path) -> None:
    labels = np.zeros(GRID.size, dtype=np.int32)
    write_labels(tmp_path / "small.nii.gz", labels, GRID)
    labels[0, 0, 0] = 300
    write_labels(tmp_path / "large.nii.gz", labels, GRID)
    assert struct.unpack_from("<h", header(tmp_path / "small.nii.gz"), 70) == (2,)
    assert struct.unpack_from("<h", header(tmp_path / "large.nii.gz"), 70) == (512,)
    labels[0, 0, 0] = -1
    with pytest.raises(ValueError, match="uint16"):
        write_labels(tmp_path / "negative.nii.gz", labels, GRID)


def test_equal_masks_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, np.ones(GRID.size, dtype=np.uint8), GRID)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_mask_stored_as_whole_floats_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "mask.nii.gz", np.full(GRID.size, 2.0, dtype=np.float32), GRID)
    assert np.all(read_labels(tmp_path / "mask.nii.gz").array == 2)


def test_a_fourth_axis_of_size_one_is_dropped(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(random_image()[None], isVector=False)
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    assert np.array_equal(read_image([tmp_path / "image.nii.gz"]).array[0], random_image())


def test_file_endings() -> None:
    assert split_file_ending("case_0000.nii.gz") == ("case_0000", ".nii.gz")
    assert split_file_ending("CASE.NRRD") == ("CASE", ".NRRD")
    assert split_file_ending("case.dcm") is None
    assert split_file_ending(".nii.gz") is None


def test_missing_empty_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="image file is missing"):
        read_image([tmp_path / "gone.nii.gz"])
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(FedsamError, match="image file is empty"):
        read_image([tmp_path / "empty.nii.gz"])
    (tmp_path / "image.dcm").write_bytes(b"x")
    with pytest.raises(FedsamError, match="unknown file ending"):
        read_image([tmp_path / "image.dcm"])
    with pytest.raises(FedsamError, match="unknown file ending"):
        write_image(tmp_path / "image.dcm", random_image(), GRID)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_garbage_and_truncated_files_are_unreadable(tmp_path: Path, ending: str) -> None:
    whole = tmp_path / f"whole{ending}"
    write_image(
        whole,
        np.random.default_rng(0).normal(size=(8, 20, 20)).astype(np.float32),
        Geometry((8, 20, 20), GRID.spacing, GRID.origin, IDENTITY),
    )
    (tmp_path / f"garbage{ending}").write_bytes(b"this is not an image" * 40)
    (tmp_path / f"half{ending}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    read_image([whole])
    for name in ("garbage", "half"):
        with pytest.raises(FedsamError, match="cannot be read") as caught:
            read_image([tmp_path / f"{name}{ending}"])
        assert name in str(caught.value)


def test_a_gzip_member_of_unexpected_size_is_read_to_its_end(tmp_path: Path) -> None:
    write_image(tmp_path / "image.nii", random_image(), GRID)
    (tmp_path / "longer.nii.gz").write_bytes(gzip.compress((tmp_path / "image.nii").read_bytes() + b"trailing"))
    assert np.array_equal(read_image([tmp_path / "longer.nii.gz"]).array[0], random_image())
    (tmp_path / "shorter.nii.gz").write_bytes(gzip.compress((tmp_path / "image.nii").read_bytes()[:-8]))
    with pytest.raises(FedsamError, match="cut off"):
        read_image([tmp_path / "shorter.nii.gz"])


def test_nifti_2_is_named(tmp_path: Path) -> None:
    for order in "<>":
        (tmp_path / "two.nii").write_bytes(struct.pack(f"{order}i", 540) + bytes(1000))
        with pytest.raises(FedsamError, match=r"cannot be read(.|\n)*NIfTI-2 format; convert"):
            read_image([tmp_path / "two.nii"])


def test_4d_2d_and_vector_images_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.float32), isVector=False), str(tmp_path / "four.nii.gz"))
    with pytest.raises(FedsamError, match=r"4D, not 3D(.|\n)*5 x 4 x 3 x 2"):
        read_image([tmp_path / "four.nii.gz"])
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.float32)), str(tmp_path / "two.mha"))
    with pytest.raises(FedsamError, match="2D, not 3D"):
        read_image([tmp_path / "two.mha"])
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), str(tmp_path / "colour.mha"))
    with pytest.raises(FedsamError, match="not single numbers"):
        read_image([tmp_path / "colour.mha"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ending", FILE_ENDINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_not_finite(tmp_path: Path, value: float, ending: str, dtype: type) -> None:
    array = random_image().astype(dtype)
    array[1, 2, 3] = value
    path = tmp_path / f"image{ending}"
    write_image(path, array, GRID)
    with pytest.raises(FedsamError, match="1 of 60 voxels are NaN or infinite"):
        read_image([path])


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "image.nrrd", np.full(GRID.size, 1e300), GRID)
    with pytest.raises(FedsamError, match="NaN or infinite"):
        read_image([tmp_path / "image.nrrd"])


def test_channels_on_different_grids(tmp_path: Path) -> None:
    write_image(tmp_path / "a_0000.nii.gz", random_image(), GRID)
    write_image(tmp_path / "a_0001.nii.gz", random_image(), Geometry(GRID.size, (3.0, 1.0, 0.6), GRID.origin, IDENTITY))
    with pytest.raises(FedsamError, match=r"different grids(.|\n)*spacing"):
        read_image([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"])
    other = Geometry((4, 4, 5), GRID.spacing, GRID.origin, IDENTITY)
    write_image(tmp_path / "a_0001.nii.gz", np.zeros(other.size, np.float32), other)
    with pytest.raises(FedsamError, match=r"different grids(.|\n)*\(4, 4, 5\) voxels"):
        read_image([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"])


def test_labels_that_are_no_class_numbers(tmp_path: Path) -> None:
    array = np.zeros(GRID.size, dtype=np.float32)
    array[0, 0, 0] = 0.5
    write_image(tmp_path / "soft.nii.gz", array, GRID)
    with pytest.raises(FedsamError, match=r"not whole numbers(.|\n)*1 voxels, such as 0\.5"):
        read_labels(tmp_path / "soft.nii.gz")
    array[0, 0, 0] = np.nan
    write_image(tmp_path / "nan.nii.gz", array, GRID)
    with pytest.raises(FedsamError, match="not finite numbers"):
        read_labels(tmp_path / "nan.nii.gz")
    write_image(tmp_path / "nan.nrrd", array, GRID)
    with pytest.raises(FedsamError, match="not whole numbers"):
        read_labels(tmp_path / "nan.nrrd")
    write_image(tmp_path / "large.nii.gz", np.full(GRID.size, 40000, dtype=np.int32), GRID)
    with pytest.raises(FedsamError, match="no class number can have"):
        read_labels(tmp_path / "large.nii.gz")


def test_skewed_axes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "skewed.nii"
    write_image(path, random_image(), GRID)
    content = header(path)
    struct.pack_into("<f", content, 284, 0.2)  # x grows with y: the sform is sheared, the qform is not
    path.write_bytes(content)
    with pytest.raises(FedsamError, match="not at right angles"):
        read_image([path])
    image = as_itk(random_image(), Geometry(GRID.size, GRID.spacing, GRID.origin, (1.0, 0.1, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)))
    sitk.WriteImage(image, str(tmp_path / "skewed.nrrd"))
    with pytest.raises(FedsamError, match="not at right angles"):
        read_image([tmp_path / "skewed.nrrd"])


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(FedsamError, match="cannot write a file"):
        write_labels(tmp_path / "blocked" / "mask.nii.gz", np.zeros(GRID.size, dtype=np.uint8), GRID)


@pytest.mark.parametrize("ending", FILE_ENDINGS)
def test_a_failed_write_leaves_nothing(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_keywords: object) -> None:
        raise RuntimeError("ITK ERROR: no space left on device")

    monkeypatch.setattr("fedsam_pipeline.dataset.image_files.sitk.WriteImage", fail)
    with pytest.raises(FedsamError, match=r"cannot be written(.|\n)*no space left"):
        write_image(tmp_path / f"image{ending}", random_image(), GRID)
    assert not list(tmp_path.iterdir())


@settings(max_examples=40, deadline=None)
@given(geometry=geometries())
def test_parts_of_a_canonical_volume_find_their_place(geometry: Geometry) -> None:
    array = np.random.default_rng(0).integers(0, 99, (2, *geometry.size))
    canonical = to_canonical(Volume(array, geometry)).array
    assert np.array_equal(from_canonical(canonical, geometry), array)
    found = np.full_like(array, -1)
    depth, half = canonical.shape[1], canonical.shape[3] // 2
    for first in range(0, depth, 2):
        for columns in (slice(0, half), slice(half, None)):
            part = canonical[:, first : first + 2, :, columns]
            if part.size:
                turned, place = part_from_canonical(part, (first, 0, columns.start), geometry)
                found[:, *place] = turned
    assert np.array_equal(found, array)


def test_the_number_of_voxels_comes_from_the_header_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "case.nii", random_image(), GRID)
    content = (tmp_path / "case.nii").read_bytes()
    (tmp_path / "case.nii").write_bytes(content[:360])  # no voxels
    assert voxels_of(tmp_path / "case.nii") == 60
    (tmp_path / "broken.nii").write_bytes(b"this is no image")
    assert voxels_of(tmp_path / "broken.nii") is None
    assert voxels_of(tmp_path) is None


def test_nrrd_masks_hold_the_names_of_their_classes_as_3d_slicer_reads_them(tmp_path: Path) -> None:
    names = {"background": 0, "tumör": 2, "liver": 1}
    labels = np.zeros(GRID.size, dtype=np.uint8)
    labels[0, 0, 0] = 2
    write_labels(tmp_path / "mask.nrrd", labels, GRID, class_names=names)
    image = sitk.ReadImage(str(tmp_path / "mask.nrrd"))
    tags = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}
    z, y, x = (length - 1 for length in GRID.size)
    for index, (name, value) in enumerate([("liver", 1), ("tumör", 2)]):
        segment = {"ID": f"Segment_{value}", "Name": name, "LabelValue": str(value), "Layer": "0", "Extent": f"0 {x} 0 {y} 0 {z}"}
        assert {key: tags[f"Segment{index}_{key}"] for key in segment} == segment
    assert tags["Segment0_Color"] != tags["Segment1_Color"]
    assert not any(key.startswith("Segment2") for key in tags)
    assert np.array_equal(read_labels(tmp_path / "mask.nrrd").array, labels)
    for ending in (".nii.gz", ".mha"):
        write_labels(tmp_path / f"named{ending}", labels, GRID, class_names=names)
        write_labels(tmp_path / f"plain{ending}", labels, GRID)
        assert (tmp_path / f"named{ending}").read_bytes() == (tmp_path / f"plain{ending}").read_bytes()
