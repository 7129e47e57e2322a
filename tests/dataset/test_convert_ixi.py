"""IXI Tiny, as TorchIO and as FLamby lay it out, made into ours."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsam_pipeline.dataset.convert_ixi import convert_ixi
from tests.dataset.converted_for_tests import refused, unpacked, values_of, write_mask, write_scan

SUBJECTS = ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI013-HH-1212", "IXI035-IOP-0873")


def torchio_layout(root: Path) -> Path:
    for number, subject in enumerate(SUBJECTS):
        write_scan(root / "ixi_tiny" / "image" / f"{subject}_image.nii.gz", number)
        write_mask(root / "ixi_tiny" / "label" / f"{subject}_label.nii.gz", (0, 1))
    return root / "ixi_tiny"


def flamby_layout(root: Path) -> Path:
    folder = root / "7kd5wj7v7p-1" / "IXI_sample"
    for number, subject in enumerate(SUBJECTS):
        write_scan(folder / subject / "T1" / f"{subject}_image.nii.gz", number)
        write_scan(folder / subject / "T2" / f"{subject}_image.nii.gz", 100 + number)
        write_mask(folder / subject / "label" / f"{subject}_label.nii.gz", (0, 1))
    (folder / "IXI.xls").write_bytes(b"")
    return root


@pytest.mark.parametrize("layout", [torchio_layout, flamby_layout])
def test_both_layouts(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    source = layout(tmp_path / "in")
    dataset = convert_ixi(source, tmp_path / "raw", number=3)
    assert dataset.name == "Dataset003_FedIXI"
    assert dataset.sites == {"Guys": SUBJECTS[:1], "HH": SUBJECTS[1:3], "IOP": SUBJECTS[3:]}
    assert dataset.labels == {"background": 0, "brain": 1} and dataset.channel_names == ("T1",)
    assert dataset.test_cases == () and dataset.patients == {}
    for case in dataset.cases:
        assert values_of(dataset, case) == {0, 1}
    first = next(path for path in (tmp_path / "in").rglob(f"{SUBJECTS[0]}_image.nii.gz") if path.parent.name != "T2")
    assert dataset.image_paths(SUBJECTS[0])[0].read_bytes() == first.read_bytes()
    content = json.loads((dataset.folder / "dataset.json").read_text())
    assert content["licence"] == "CC BY-SA 3.0" and "ROBEX" in content["description"]


def test_names_of_ixi_itself_and_a_patient_with_two_scans(tmp_path: Path) -> None:
    for subject in ("IXI002-Guys-0828", "IXI002-Guys-0999", "IXI012-HH-1211"):
        write_scan(tmp_path / "in" / "image" / f"{subject}-T1.nii")
        write_mask(tmp_path / "in" / "label" / f"{subject}-mask.nii", (0, 1))
    dataset = convert_ixi(tmp_path / "in", tmp_path / "raw", number=3)
    assert dataset.patients == {"IXI002-Guys-0828": "IXI002", "IXI002-Guys-0999": "IXI002"}
    plain = tmp_path / "in" / "image" / "IXI012-HH-1211-T1.nii"
    assert unpacked(dataset.image_paths("IXI012-HH-1211")[0]) == plain.read_bytes()


def test_flambys_split(tmp_path: Path) -> None:
    source, table = torchio_layout(tmp_path), tmp_path / "metadata_tiny.csv"
    table.write_text("Patient ID,Manufacturer,Split\n2,0,train\n12,1,train\n13,1,test\n35,2,train\n99,0,test\n")
    dataset = convert_ixi(source, tmp_path / "raw", number=3, split_file=table)
    assert dataset.test_sites == {"HH": ("IXI013-HH-1212",)} and len(dataset.cases) == 3
    assert (dataset.folder / "labelsTs" / "IXI013-HH-1212.nii.gz").is_file()
    table.write_text("Patient ID,Manufacturer,Split\n2,0,train\n12,1,val\n13,1,test\n")
    text = refused(convert_ixi, source, tmp_path / "raw2", split_file=table)
    assert "no row for 1: IXI035" in text and "unknown splits: 1: val" in text


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    source = torchio_layout(tmp_path)
    (source / "label" / f"{SUBJECTS[0]}_label.nii.gz").unlink()
    (source / "image" / f"{SUBJECTS[1]}_image.nii.gz").unlink()
    write_scan(source / "image" / f"{SUBJECTS[2]}_image.nii")
    write_scan(source / "image" / "sub-01_T1w.nii.gz")
    write_scan(source / "image" / "IXI700-UCL-0001_image.nii.gz")
    text = refused(convert_ixi, source, tmp_path / "raw")
    for words in (
        f"images without a mask, 2: {SUBJECTS[0]}, IXI700-UCL-0001",
        f"masks without an image, 1: {SUBJECTS[1]}",
        f"more than one file for, 1: image/{SUBJECTS[2]}",
        "unknown names, 1: image/sub-01_T1w.nii.gz",
        "hospitals other than Guys, HH, IOP, 1: IXI700-UCL-0001",
        "IXI002-Guys-0828_image.nii.gz",
    ):
        assert words in text


def test_unknown_values_and_no_ixi_at_all(tmp_path: Path) -> None:
    source = torchio_layout(tmp_path)
    write_mask(source / "label" / f"{SUBJECTS[0]}_label.nii.gz", (0, 255))
    text = refused(convert_ixi, source, tmp_path / "raw")
    assert f"label value 255 in label/{SUBJECTS[0]}_label.nii.gz, which may hold 0, 1" in text
    write_scan(tmp_path / "T1" / "IXI002-Guys-0828-T1.nii.gz")
    assert "no image" in refused(convert_ixi, tmp_path / "T1", tmp_path / "raw")
