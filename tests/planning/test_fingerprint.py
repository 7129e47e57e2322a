"""The fingerprint of volumes whose numbers are known, and what it must not contain."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.dataset.volume import read_labels, write_labels
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.planning.fingerprint import case_failure, fingerprint_site, measure_case
from fedsam_pipeline.planning.grids import intensity_value, log_value, quantile
from fedsam_pipeline.preprocessing.workers import CaseOutcome
from fedsam_pipeline.specs.fingerprint import CASE_MASS, Fingerprint
from tests.planning.fingerprints import LABELS, random_case, volumes


def test_numbers_of_a_known_case() -> None:
    image = np.zeros((1, 8, 10, 12))
    image[0, 2:6, 1:9, 2:10] = 50.0
    labels = np.zeros((8, 10, 12))
    labels[2:4, 2:6, 3:9] = 1
    labels[5, 8, 9] = 1  # a second, smaller component
    image[0][labels == 1] = 7.0
    found = measure_case(*volumes(image, labels, (3.0, 0.5, 0.859375)), "Dataset001_Test", ("MRI",), LABELS)
    assert found.spacing == ({3000: 1}, {500: 1}, {859: 1})
    assert found.size == ({4: 1}, {8: 1}, {8: 1})
    assert found.extent == ({120: 1}, {40: 1}, {69: 1})
    assert found.kept_fraction == {round(1000 * 256 / 960): 1}
    channel = found.channels[0]
    assert (channel.moments.weight, channel.moments.mean, channel.moments.m2) == (1, 7.0, 0.0)
    assert list(channel.histogram.values()) == [CASE_MASS]
    organ = found.classes["organ"]
    assert (organ.num_cases, organ.components) == (1, {2: 1})
    assert log_value(next(iter(organ.volume_mm3))) == pytest.approx(49 * 3 * 0.5 * 0.859375, rel=0.01)
    assert [log_value(next(iter(counts))) for counts in organ.extent_mm] == pytest.approx([6.0, 2.0, 6 * 0.859375], rel=0.01)
    assert found.classes["lesion"].num_cases == 0


def test_orientation_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    image, labels = generator.normal(size=(1, 5, 6, 7)), generator.integers(0, 3, (5, 6, 7))
    straight = measure_case(*volumes(image, labels, (3.0, 2.0, 1.0)), "D", ("MRI",), LABELS)
    # stored index x runs along z, y along x, z along y: the same patient
    turned_image, turned_labels = image.transpose(0, 2, 3, 1), labels.transpose(1, 2, 0)
    direction = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    turned = measure_case(*volumes(turned_image, turned_labels, (2.0, 1.0, 3.0), direction), "D", ("MRI",), LABELS)
    silent = {"channels": {"__all__": {"moments"}}}  # summed in another order
    assert turned.model_dump(exclude=silent) == straight.model_dump(exclude=silent)
    assert turned.channels[0].moments.mean == pytest.approx(straight.channels[0].moments.mean, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0, 1.7e6])
def test_percentiles_are_within_half_a_percent(scale: float) -> None:
    values = np.random.default_rng(1).gamma(2.0, scale, (1, 20, 20, 20)).astype(np.float32)
    found = measure_case(*volumes(values, np.ones((20, 20, 20))), "D", ("MRI",), LABELS)
    for q in (0.005, 0.5, 0.995):
        exact = np.quantile(values, q)
        assert intensity_value(quantile(found.channels[0].histogram, q)) == pytest.approx(exact, rel=0.005, abs=3e-5)
    assert found.channels[0].moments.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-9)
    assert found.channels[0].moments.std == pytest.approx(values.std(dtype=np.float64), rel=1e-9)


def test_a_case_without_foreground_has_no_weight() -> None:
    found = measure_case(*volumes(np.ones((2, 4, 4, 4)), np.zeros((4, 4, 4))), "D", ("a", "b"), LABELS)
    assert [channel.moments.weight for channel in found.channels] == [0, 0]
    assert found.channels[0].moments.std == 0


def test_an_empty_image_keeps_its_size() -> None:
    found = measure_case(*volumes(np.zeros((1, 4, 5, 6)), np.zeros((4, 5, 6))), "D", ("a",), LABELS)
    assert found.size == ({4: 1}, {5: 1}, {6: 1})


def test_a_file_keeps_every_bit(tmp_path: Path) -> None:
    fingerprint = random_case(3, scale=1e6 / 3)
    fingerprint.save(tmp_path / "site.json")
    again = Fingerprint.load(tmp_path / "site.json")
    assert again == fingerprint
    assert again.sha256() == fingerprint.sha256()


def test_counts_that_do_not_add_up_are_refused() -> None:
    whole = random_case(1).to_dict()
    broken = whole | {"kept_fraction": {"1000": 2}}
    with pytest.raises(FedsamError, match="kept_fraction counts 2 cases, expected 1"):
        Fingerprint.from_dict(broken)
    with pytest.raises(FedsamError, match="holds a mass of 5, expected 1000000000"):
        Fingerprint.from_dict(whole | {"channels": [whole["channels"][0] | {"histogram": {"1": 5}}]})
    with pytest.raises(FedsamError, match="classes: found"):
        Fingerprint.from_dict(whole | {"classes": {}})


def test_a_site_without_names_of_cases(tmp_path: Path) -> None:
    dataset = make_demo_dataset(tmp_path / "Dataset001_Demo", size="tiny")
    site = next(iter(dataset.sites))
    found = fingerprint_site(dataset, site)
    assert found.num_cases == len(dataset.sites[site])
    found.save(tmp_path / "site.json")
    text = (tmp_path / "site.json").read_text()
    assert not any(case in text for case in dataset.cases)


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
    failed = [CaseOutcome[Fingerprint]("a", error=FedsamError("bad file")), CaseOutcome[Fingerprint]("b", error=ZeroDivisionError("oops"))]
    error = case_failure("site_a", failed)
    assert isinstance(error, RuntimeError)
    assert "case b of site_a failed" in str(error)
    assert case_failure("site_a", failed[:1]) is failed[0].error
