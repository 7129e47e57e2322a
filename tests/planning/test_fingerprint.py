"""The fingerprint of volumes whose numbers are known, and what it must not contain."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.dataset.volume import read_labels, write_labels
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.planning.fingerprint import case_failure, fingerprint_site, measure_case
from fedsam_pipeline.planning.grids import exact_counts, intensity_value, log_value, median, quantile
from fedsam_pipeline.planning.measures import CaseMeasures
from fedsam_pipeline.planning.privacy import release
from fedsam_pipeline.preprocessing.workers import CaseOutcome
from fedsam_pipeline.specs.fingerprint import CASE_MASS, Bin, Counts, Fingerprint
from tests.planning.fingerprints import LABELS, fingerprint_of, random_site, volumes


def once(position: int) -> Counts:
    return exact_counts({position: 1})


def test_numbers_of_a_known_case() -> None:
    image = np.zeros((1, 8, 10, 12))
    image[0, 2:6, 1:9, 2:10] = 50.0
    labels = np.zeros((8, 10, 12))
    labels[2:4, 2:6, 3:9] = 1
    labels[5, 8, 9] = 1  # a second, smaller component
    image[0][labels == 1] = 7.0
    measured = measure_case(*volumes(image, labels, (3.0, 0.5, 0.859375)), LABELS)
    assert measured.geometry == (3000, 500, 859, 4, 8, 8, 120, 40, 69, round(1000 * 256 / 960))
    found = fingerprint_of([measured])
    assert found.spacing == (once(3000), once(500), once(859))
    assert found.size == (once(4), once(8), once(8))
    assert found.extent == (once(120), once(40), once(69))
    assert found.kept_fraction == once(round(1000 * 256 / 960))
    channel = found.channels[0]
    assert (channel.moments.weight, channel.moments.mean, channel.moments.m2) == (1, 7.0, 0.0)
    assert list(channel.histogram.values()) == [CASE_MASS]
    organ = found.classes["organ"]
    assert (organ.num_cases, organ.components) == (1, once(2))
    assert log_value(median(organ.volume_mm3)) == pytest.approx(49 * 3 * 0.5 * 0.859375, rel=0.01)
    assert [log_value(median(counts)) for counts in organ.extent_mm] == pytest.approx([6.0, 2.0, 6 * 0.859375], rel=0.01)
    assert "lesion" not in found.classes


def test_orientation_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    image, labels = generator.normal(size=(1, 5, 6, 7)), generator.integers(0, 3, (5, 6, 7))
    straight = fingerprint_of([measure_case(*volumes(image, labels, (3.0, 2.0, 1.0)), LABELS)])
    # stored index x runs along z, y along x, z along y: the same patient
    turned_image, turned_labels = image.transpose(0, 2, 3, 1), labels.transpose(1, 2, 0)
    direction = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    turned = fingerprint_of([measure_case(*volumes(turned_image, turned_labels, (2.0, 1.0, 3.0), direction), LABELS)])
    silent = {"channels": {"__all__": {"moments"}}}  # summed in another order
    assert turned.model_dump(exclude=silent) == straight.model_dump(exclude=silent)
    assert turned.channels[0].moments.mean == pytest.approx(straight.channels[0].moments.mean, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0, 1.7e6])
def test_percentiles_are_within_half_a_percent(scale: float) -> None:
    values = np.random.default_rng(1).gamma(2.0, scale, (1, 20, 20, 20)).astype(np.float32)
    found = fingerprint_of([measure_case(*volumes(values, np.ones((20, 20, 20))), LABELS)])
    for q in (0.005, 0.5, 0.995):
        exact = np.quantile(values, q)
        assert intensity_value(quantile(found.channels[0].histogram, q)) == pytest.approx(exact, rel=0.005, abs=3e-5)
    assert found.channels[0].moments.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-9)
    assert found.channels[0].moments.std == pytest.approx(values.std(dtype=np.float64), rel=1e-9)


def test_a_case_without_foreground_has_no_weight() -> None:
    empty = measure_case(*volumes(np.ones((2, 4, 4, 4)), np.zeros((4, 4, 4))), LABELS)
    assert empty.channels == ()
    found = fingerprint_of([empty])
    assert (found.num_cases, found.channels[0].moments.weight, found.channels[0].moments.std) == (1, 0, 0)


def test_an_empty_image_keeps_its_size() -> None:
    found = measure_case(*volumes(np.zeros((1, 4, 5, 6)), np.zeros((4, 5, 6))), LABELS)
    assert fingerprint_of([found]).size == (once(4), once(5), once(6))


def test_a_file_keeps_every_bit(tmp_path: Path) -> None:
    fingerprint = random_site(range(3, 4), scale=1e6 / 3)
    fingerprint.save(tmp_path / "site.json")
    again = Fingerprint.load(tmp_path / "site.json")
    assert again == fingerprint
    assert again.sha256() == fingerprint.sha256()


def test_counts_that_do_not_add_up_are_refused() -> None:
    whole = random_site(range(1, 2)).to_dict()
    broken = whole | {"kept_fraction": {"1000": 2}}
    with pytest.raises(FedsamError, match="kept_fraction counts 2 cases, expected 1"):
        Fingerprint.from_dict(broken)
    with pytest.raises(FedsamError, match="holds a mass of 5, expected 1000000000"):
        Fingerprint.from_dict(whole | {"channels": [whole["channels"][0] | {"histogram": {"1": 5}}]})
    with pytest.raises(FedsamError, match="classes: found"):
        Fingerprint.from_dict(whole | {"classes": {"background": whole["classes"]["organ"]}})
    with pytest.raises(FedsamError, match="components counts 3 cases, expected 1"):
        Fingerprint.from_dict(whole | {"classes": {"organ": whole["classes"]["organ"] | {"components": {"1": 3}}}})


@pytest.mark.parametrize("key", ["", "x", "3..", "..3", "4..2", "1..2..3", "1.5"])
def test_bins_that_are_none(key: str) -> None:
    whole = random_site(range(1, 2)).to_dict()
    with pytest.raises(FedsamError, match="kept_fraction"):
        Fingerprint.from_dict(whole | {"kept_fraction": {key: 1}})


def test_bins_in_a_file() -> None:
    whole = random_site(range(2)).to_dict()
    found = Fingerprint.from_dict(whole | {"kept_fraction": {"896..1023": 1, "-2..-1": 1}})
    assert found.kept_fraction == {Bin(896, 1023): 1, Bin(-2, -1): 1}
    assert found.to_dict()["kept_fraction"] == {"-2..-1": 1, "896..1023": 1}


def test_a_site_without_names_of_cases(tmp_path: Path) -> None:
    dataset = make_demo_dataset(tmp_path / "Dataset001_Demo", size="tiny")
    site = next(iter(dataset.sites))
    found = release(fingerprint_site(dataset, site), 1).document
    assert isinstance(found, Fingerprint)
    assert found.num_cases == len(dataset.sites[site])
    found.save(tmp_path / "site.json")
    text = (tmp_path / "site.json").read_text()
    assert not any(case in text for case in dataset.cases)


def test_ignored_voxels_and_unannotated_classes_do_not_count(tmp_path: Path) -> None:
    dataset = make_demo_dataset(tmp_path / "Dataset001_Demo", size="tiny")
    site = "site_a"

    def released(dataset: RawDataset) -> Fingerprint:
        document = release(fingerprint_site(dataset, site), 1).document
        assert isinstance(document, Fingerprint)
        return document

    plain = released(dataset)
    for case in dataset.sites[site]:  # organ voxels of the first slices become ignored, nodules are not annotated
        labels = read_labels(dataset.label_path(case))
        array = np.where(labels.array == 2, 0, labels.array)
        array[:3] = 3
        write_labels(dataset.label_path(case), array, labels.geometry)
    found = released(replace(dataset, ignore_label=3, site_labels={site: ("organ",)}))
    assert found.labels == plain.labels == {"background": 0, "organ": 1, "nodule": 2}
    assert (found.spacing, found.size, found.num_cases) == (plain.spacing, plain.size, plain.num_cases)
    assert "nodule" not in found.classes
    assert found.classes["organ"].num_cases == plain.num_cases
    assert max(found.classes["organ"].volume_mm3) < max(plain.classes["organ"].volume_mm3)
    for case in dataset.sites[site]:  # the same, with the ignored voxels as background
        labels = read_labels(dataset.label_path(case))
        write_labels(dataset.label_path(case), np.where(labels.array == 3, 0, labels.array), labels.geometry)
    assert released(dataset) == found


def test_all_bad_cases_of_a_site_are_named(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path / "Dataset001_Demo", size="tiny")
    dataset = load_raw_dataset(tmp_path / "Dataset001_Demo")
    bad = dataset.cases[:2]
    for case in bad:
        labels = read_labels(dataset.label_path(case))
        write_labels(dataset.label_path(case), labels.array + 40, labels.geometry)
    dataset = replace(dataset, sites={"all": dataset.cases})
    with pytest.raises(FedsamError, match="2 cases of all do not pass the checks") as caught:
        fingerprint_site(dataset, "all")
    assert all(case in str(caught.value) for case in bad)


def test_failures_of_ours_are_no_user_errors() -> None:
    failed = [
        CaseOutcome[CaseMeasures]("a", error=FedsamError("bad file")),
        CaseOutcome[CaseMeasures]("b", error=ZeroDivisionError("oops")),
    ]
    error = case_failure("site_a", failed)
    assert isinstance(error, RuntimeError)
    assert "case b of site_a failed" in str(error)
    assert case_failure("site_a", failed[:1]) is failed[0].error
