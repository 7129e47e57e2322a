"""site.toml: label values and channel order of one site become the federation's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.site_mapping import read_mapped_labels
from fedsam_pipeline.dataset.volume import write_image, write_labels
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.preprocessing.store_case import input_signature
from tests.dataset.raw_for_tests import GRID, make_raw, write_content

SITE = """
site = "clinic"

[labels]
4 = "organ"
5 = "organ"
"lesion" = "nodule"
"vessel" = "background"

[own_labels]
lesion = 9
vessel = 300

[channels]
order = ["T2", "T1"]
"""


def with_site(folder: Path, text: str = SITE, **changes: Any) -> RawDataset:
    write_content(folder, **({"sites": None, "test_sites": None} | changes))
    (folder / "site.toml").write_text(text)
    return load_raw_dataset(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_raw(tmp_path)


def write_mask(folder: Path, *values: int) -> None:
    labels = np.zeros(GRID.size, np.uint16)
    labels[0, 0, : len(values)] = values
    write_labels(folder / "labelsTr" / "a1.nii.gz", labels, GRID)


def test_values_and_channels_become_the_federations(folder: Path) -> None:
    write_mask(folder, 4, 5, 9, 300)
    dataset = with_site(folder)
    assert (list(dataset.sites), list(dataset.test_sites)) == (["clinic"], ["clinic"])
    assert dataset.labels == {"background": 0, "organ": 1, "nodule": 2} and dataset.channel_names == ("T1", "T2")
    image, labels = verify_case(dataset, "a1")
    assert labels.array[0, 0].tolist() == [1, 1, 2, 0, 0] and labels.array.dtype == np.int16
    assert [float(channel.mean()) for channel in image.array] == [1.0, 0.0]
    assert [path.name for path in dataset.image_paths("a1")] == ["a1_0001.nii.gz", "a1_0000.nii.gz"]
    assert [path.name for path in dataset.test_image_paths("t1")] == ["t1_0001.nii.gz", "t1_0000.nii.gz"]
    read = read_mapped_labels(dataset.label_path("a1"), dataset.mapping)
    assert np.array_equal(read.array, labels.array)


def test_a_value_that_is_not_mapped_is_an_error(folder: Path) -> None:
    dataset = with_site(folder)
    with pytest.raises(FedsamError, match=r"site\.toml does not map(.|\n)*label value 1, 2(.|\n)*0, 4, 5, 9, 300"):
        verify_case(dataset, "a1")
    with pytest.raises(FedsamError, match="does not map"):
        read_mapped_labels(dataset.label_path("a1"), dataset.mapping)


def test_without_the_tables_nothing_changes(folder: Path) -> None:
    dataset = with_site(folder, 'site = "clinic"')
    _, labels = verify_case(dataset, "a1")
    assert labels.array[0, 0, :3].tolist() == [0, 1, 2]
    assert [path.name for path in dataset.image_paths("a1")] == ["a1_0000.nii.gz", "a1_0001.nii.gz"]


def test_a_channel_that_the_federation_does_not_use(folder: Path) -> None:
    for case in ("a1", "a2", "b1"):
        write_image(folder / "imagesTr" / f"{case}_0002.nii.gz", np.full(GRID.size, 7.0, np.float32), GRID)
    write_image(folder / "imagesTs" / "t1_0002.nii.gz", np.full(GRID.size, 7.0, np.float32), GRID)
    dataset = with_site(folder, '[channels]\norder = ["-", "T2", "T1"]')
    assert [float(channel.mean()) for channel in verify_case(dataset, "a1")[0].array] == [7.0, 1.0]


def test_an_explicit_map_follows_the_order_too(folder: Path) -> None:
    cases = {"x": {"images": ["imagesTr/a1_0000.nii.gz", "imagesTr/a1_0001.nii.gz"], "label": "labelsTr/a1.nii.gz"}}
    dataset = with_site(folder, '[channels]\norder = ["T2", "T1"]', dataset=cases)
    assert [path.name for path in dataset.image_paths("x")] == ["a1_0001.nii.gz", "a1_0000.nii.gz"]


def test_the_mapping_is_part_of_what_a_stored_case_was_made_of(folder: Path) -> None:
    plain = with_site(folder, 'site = "clinic"')
    first = input_signature(plain, "a1")
    assert input_signature(with_site(folder, '[labels]\n1 = "organ"\n2 = "nodule"\n'), "a1") != first
    assert input_signature(with_site(folder, 'site = "clinic"\n[channels]\norder = ["T2", "T1"]'), "a1") != first
    assert input_signature(with_site(folder, 'site = "other"'), "a1") != first
    assert input_signature(with_site(folder, '# a comment\nsite = "clinic"'), "a1") == first


def test_ignored_voxels_can_be_mapped(folder: Path) -> None:
    write_mask(folder, 255, 1)
    labels = {"background": 0, "organ": 1, "ignore": 2}
    dataset = with_site(folder, '[labels]\n1 = "organ"\n255 = "ignore"', labels=labels)
    assert verify_case(dataset, "a1")[1].array[0, 0, :3].tolist() == [2, 1, 0]


def test_every_fault_is_listed_at_once(folder: Path) -> None:
    text = """
site = "../up"
colour = 1
[labels]
1 = "spleen"
x = "organ"
3 = "organ"
"+3" = "nodule"
[own_labels]
y = 1.5
[channels]
order = ["T1", "T1", "T3"]
direction = 1
"""
    with pytest.raises(FedsamError) as caught:
        with_site(folder, text)
    message = str(caught.value)
    for words in (
        "colour: unknown key",
        "'../up' cannot be a file name",
        "own_labels.y: 1.5",
        "labels.1: 'spleen' is not a label",
        "labels.x: neither a value nor a name",
        "labels.+3: the value 3 is mapped already, by labels.3",
        "own_labels: y not mapped",
        "channels.direction: unknown key",
        "T3 not in channel_names",
        "T2 of channel_names missing",
        "T1 more than once",
    ):
        assert words in message, words
    assert "site.toml" in message and "11 faults" in message


@pytest.mark.parametrize("text", ["not toml", "site = 3\nlabels = 1\n", '[channels]\norder = "T1"'])
def test_other_shapes(folder: Path, text: str) -> None:
    with pytest.raises(FedsamError, match=r"site\.toml"):
        with_site(folder, text)


def test_a_site_that_dataset_json_does_not_know(folder: Path) -> None:
    with pytest.raises(FedsamError, match=r"different sites(.|\n)*clinic against a, b"):
        with_site(folder, 'site = "clinic"', sites={"a": ["a1", "a2"], "b": ["b1"]})
    dataset = with_site(folder, 'site = "clinic"', sites={"clinic": ["a1", "a2", "b1"]})
    assert dataset.site_of("a1") == "clinic"
