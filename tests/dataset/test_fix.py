"""--fix: the copy passes every check, the original is not touched, nothing unsafe is done."""

import gzip
import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from fedsam_pipeline.dataset.findings import Check, Finding
from fedsam_pipeline.dataset.fix import Mended, copy_folder, write_fixed_copy
from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.integrity import case_record
from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.volume import read_image, read_labels, write_image, write_labels
from fedsam_pipeline.errors import FedsamError
from tests.dataset.raw_for_tests import GRID, make_textured, skew, textured, write_content

sitk: Any = SimpleITK
LABELS = np.zeros(GRID.size, np.uint8)
LABELS[0, 0, :3] = (0, 1, 2)


@pytest.fixture
def dataset(tmp_path: Path) -> RawDataset:
    return load_raw_dataset(make_textured(tmp_path))


def moved(**changes: object) -> Geometry:
    return Geometry.from_dict(GRID.to_dict() | changes)


def findings_of(dataset: RawDataset) -> list[Finding]:
    records = [case_record(dataset, case) for case in dataset.cases]
    records += [case_record(dataset, case, test=True) for case in dataset.test_cases]
    return [finding for record in records for finding in record.findings]


def fixed(dataset: RawDataset) -> tuple[RawDataset, list[Mended]]:
    """The copy, and what was done; the original must keep its bytes."""
    before = digests(dataset.folder)
    target = copy_folder(dataset, None)
    mended = write_fixed_copy(dataset, target, findings_of(dataset))
    assert digests(dataset.folder) == before
    assert sorted(path.name for path in target.parent.iterdir() if path.name.startswith(".")) == []
    return load_raw_dataset(target), mended


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def as_4d(path: Path, array: Any) -> None:
    image = sitk.GetImageFromArray(array[None], isVector=False)
    image.SetSpacing((*GRID.spacing[::-1], 1.0))
    sitk.WriteImage(image, str(path))


def test_every_safe_fix_in_one_dataset(dataset: RawDataset) -> None:
    write_labels(dataset.label_path("a1"), LABELS, moved(origin=(0.09, 0.0, 0.0)))
    write_image(dataset.image_paths("a1")[1], textured(1), moved(origin=(0.0, 0.004, 0.0)))
    as_4d(dataset.image_paths("a2")[0], textured(2))
    as_4d(dataset.label_path("a2"), LABELS.astype(np.float32))
    for path in (*dataset.image_paths("b1"), dataset.label_path("b1")):
        skew(path, 0.01)
    skew(dataset.test_image_paths("t1")[0], 0.01)
    copy, mended = fixed(dataset)
    assert findings_of(copy) == []
    assert {entry.path for entry in mended} == {
        *("imagesTr/a1_0001.nii.gz", "labelsTr/a1.nii.gz", "imagesTr/a2_0000.nii.gz", "labelsTr/a2.nii.gz", "imagesTs/t1_0000.nii.gz"),
        *("imagesTr/b1_0000.nii.gz", "imagesTr/b1_0001.nii.gz", "labelsTr/b1.nii.gz"),
        "imagesTs/t1_0001.nii.gz",  # on the grid that the other channel had before
    }
    for case, images in (("a1", (0, 1)), ("a2", (2, 3)), ("b1", (4, 5))):
        image = read_image(copy.image_paths(case))
        assert all(np.array_equal(image.array[number], textured(seed)) for number, seed in enumerate(images))
        labels = read_labels(copy.label_path(case))
        assert np.array_equal(labels.array, LABELS)
        assert labels.geometry == image.geometry
    assert sitk.ReadImage(str(copy.label_path("a2"))).GetPixelID() == sitk.sitkUInt8
    written = json.loads((copy.folder / "fixes.json").read_text())
    assert written["copy_of"] == dataset.name
    assert [entry["path"] for entry in written["fixes"]] == [entry.path for entry in mended]
    assert any("0.09 mm off" in fix for entry in mended for fix in entry.fixes)


def test_what_is_not_safe_is_left_byte_for_byte(dataset: RawDataset) -> None:
    broken = textured(0)
    broken[0, 0, 0] = np.nan
    as_4d(dataset.image_paths("a1")[0], broken)
    write_labels(dataset.label_path("a1"), LABELS + 5, GRID)
    write_labels(dataset.label_path("a2"), LABELS, moved(origin=(0.5, 0.0, 0.0)))
    skew(dataset.image_paths("b1")[0], 0.3)
    skew(dataset.label_path("b1"), 0.01)
    found = findings_of(dataset)
    copy, mended = fixed(dataset)
    assert [entry.path for entry in mended] == ["labelsTr/b1.nii.gz"]
    for path in (dataset.image_paths("a1")[0], dataset.label_path("a1"), dataset.label_path("a2"), dataset.image_paths("b1")[0]):
        assert (copy.folder / path.relative_to(dataset.folder)).read_bytes() == path.read_bytes()
    left = {(finding.case, finding.check) for finding in findings_of(copy)}
    assert left == {(finding.case, finding.check) for finding in found if not finding.fixable}
    assert {check for _, check in left} == {Check.FINITE, Check.KNOWN_VALUES, Check.MASK_GRID, Check.STRAIGHT, Check.ONE_FRAME}


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_other_formats(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "Dataset003_Other"
    skewed = moved(direction=(1.0, 0.01, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    for case, grid in (("a", GRID), ("b", skewed)):
        write_image(folder / "imagesTr" / f"{case}_0000{ending}", textured(0), grid)
        write_image(folder / "labelsTr" / f"{case}{ending}", LABELS.astype(np.float32), grid)
    write_content(folder, channel_names={"0": "T1"}, file_ending=ending, sites=None, test_sites=None)
    dataset = load_raw_dataset(folder)
    assert {finding.check for finding in findings_of(dataset)} == {Check.STRAIGHT, Check.MASK_TYPE}
    copy, _ = fixed(dataset)
    assert findings_of(copy) == []
    shutil.rmtree(folder)  # the copy stands alone
    assert np.array_equal(read_image(copy.image_paths("b")).array[0], textured(0))


def test_the_whole_dataset_is_copied(dataset: RawDataset) -> None:
    (dataset.folder / "site.toml").write_text('[channels]\norder = ["T2", "T1"]\n')
    (dataset.folder / "README.md").write_text("about")
    (dataset.folder / "imagesTr" / "._junk").write_text("x")
    write_labels(dataset.folder / "labelsTs" / "t1.nii.gz", LABELS, moved(origin=(0.05, 0.0, 0.0)))
    write_labels(dataset.label_path("a1"), LABELS, moved(origin=(0.05, 0.0, 0.0)))
    with_site = load_raw_dataset(dataset.folder)
    copy, mended = fixed(with_site)
    assert [entry.path for entry in mended] == ["labelsTr/a1.nii.gz", "labelsTs/t1.nii.gz"]
    assert "a1_0001.nii.gz" in mended[0].fixes[0]  # the federation's first channel
    names = {path.relative_to(copy.folder).as_posix() for path in copy.folder.rglob("*") if path.is_file()}
    original = {path.relative_to(dataset.folder).as_posix() for path in dataset.folder.rglob("*") if path.is_file()}
    assert names == (original - {"imagesTr/._junk"}) | {"fixes.json"}
    assert copy.sites == dataset.sites and copy.mapping == with_site.mapping


def test_an_explicit_map_becomes_plain_folders(dataset: RawDataset) -> None:
    images = ["imagesTr/a1_0000.nii.gz", "imagesTr/a1_0001.nii.gz"]
    write_content(dataset.folder, dataset={"x": {"images": images, "label": "labelsTr/a1.nii.gz"}}, sites=None)
    write_labels(dataset.label_path("a1"), LABELS, moved(origin=(0.05, 0.0, 0.0)))
    explicit = load_raw_dataset(dataset.folder)
    copy, mended = fixed(explicit)
    assert [entry.path for entry in mended] == ["labelsTr/x.nii.gz"]
    assert copy.cases == ("x",) and copy.explicit_files == {}
    assert np.array_equal(read_image(copy.image_paths("x")).array, read_image(explicit.image_paths("x")).array)
    assert findings_of(copy) == []


def test_a_big_endian_skewed_file_keeps_its_voxels(dataset: RawDataset) -> None:
    path = dataset.image_paths("a1")[0]
    content = bytearray(gzip.decompress(path.read_bytes()))
    fields = [(0, 1, 4), (40, 8, 2), (70, 2, 2), (76, 8, 4), (108, 3, 4), (252, 2, 2), (256, 18, 4), (352, (len(content) - 352) // 4, 4)]
    for offset, count, width in fields:
        for start in range(offset, offset + count * width, width):
            content[start : start + width] = content[start : start + width][::-1]
    struct.pack_into(">f", content, 284, 0.01)
    path.write_bytes(gzip.compress(bytes(content)))
    copy, _ = fixed(dataset)
    assert np.array_equal(read_image(copy.image_paths("a1")).array[0], textured(0))


def test_the_number_of_the_copy(dataset: RawDataset) -> None:
    root = dataset.folder.parent
    assert copy_folder(dataset, None) == root / "Dataset008_Tiny_fixed"
    (root / "Dataset008_Other").mkdir()
    assert copy_folder(dataset, None).name == "Dataset009_Tiny_fixed"
    assert copy_folder(dataset, 3).name == "Dataset003_Tiny_fixed"
    for number, words in ((8, "Dataset008_Other"), (7, "Dataset007_Tiny"), (1000, "three digits")):
        with pytest.raises(FedsamError, match=rf"{words}(.|\n)*-o"):
            copy_folder(dataset, number)


def test_a_copy_that_fails_leaves_nothing(dataset: RawDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    write_labels(dataset.label_path("a1"), LABELS, moved(origin=(0.05, 0.0, 0.0)))
    findings = findings_of(dataset)

    def fail(*_arguments: object, **_keywords: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("fedsam_pipeline.dataset.fix.write_file", fail)
    with pytest.raises(OSError, match="no space"):
        write_fixed_copy(dataset, copy_folder(dataset, None), findings)
    assert [path.name for path in dataset.folder.parent.iterdir()] == [dataset.name]
