"""The demo cohort: sound, reproducible, and as different between sites as promised."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.phantom import Waves, draw_case, grid_points
from fedsam_pipeline.dataset.synthetic import DEMO_SITES, TINY_SITES, make_demo_dataset
from fedsam_pipeline.dataset.volume import read_image, read_labels
from fedsam_pipeline.errors import FedsamError

NAME = "Dataset001_Demo"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_tiny_case_is_sound(tmp_path: Path) -> None:
    dataset = make_demo_dataset(tmp_path / NAME, size="tiny")
    assert {site: len(cases) for site, cases in dataset.sites.items()} == {"site_a": 5, "site_b": 2, "site_c": 2}
    assert dataset.labels == {"background": 0, "organ": 1, "nodule": 2}
    for case in dataset.cases:
        image, labels = verify_case(dataset, case)
        assert set(np.unique(labels.array)) == {0, 1, 2}
        assert image.array.std() > 0 and image.array.min() >= 0
        assert max(image.geometry.spacing) >= 3 * min(image.geometry.spacing)
    for case in dataset.test_cases:
        image = read_image(dataset.test_image_paths(case))
        truth = read_labels(dataset.folder / "labelsTs" / f"{case}.nii.gz")
        assert image.geometry.same_grid(truth.geometry)
        assert set(np.unique(truth.array)) == {0, 1, 2}


def test_sites_differ_in_how_they_store_images(tmp_path: Path) -> None:
    dataset = make_demo_dataset(tmp_path / NAME, size="tiny")
    orientations = {site: verify_case(dataset, cases[0])[0].geometry.orientation for site, cases in dataset.sites.items()}
    assert orientations == {site.name: site.orientation for site in TINY_SITES}


def test_one_patient_looks_different_at_every_site_even_after_z_scoring() -> None:
    images = []
    for site in DEMO_SITES:
        image, labels = draw_case(np.random.default_rng(3), site.scanner, (12, 48, 48), (3.0, 1.0, 1.0))
        images.append((image - image.mean()) / image.std())
        assert set(np.unique(labels)) == {0, 1, 2}
    for one, other in combinations(images, 2):
        assert np.sqrt(((one - other) ** 2).mean()) > 0.15


def test_same_seed_same_bytes_other_seed_other_patients(tmp_path: Path) -> None:
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        make_demo_dataset(tmp_path / folder / NAME, size="tiny", seed=seed)
    one, two, three = (contents(tmp_path / folder / NAME) for folder in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    assert not any(one[name] == three[name] for name in one)


def test_the_demo_cohort_fits_an_image_of_56_pixels() -> None:
    assert [site.labelled for site in DEMO_SITES] == [10, 8, 6, 3]
    assert all(max(site.size[1:]) + 2 <= 56 for site in DEMO_SITES)  # sizes vary by two voxels


def test_an_existing_cohort_is_kept_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    make_demo_dataset(folder, size="tiny")
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    make_demo_dataset(folder, size="tiny")
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(FedsamError, match=r"holds another dataset(.|\n)*--overwrite"):
        make_demo_dataset(folder, size="tiny", seed=1)
    make_demo_dataset(folder, size="tiny", seed=1, overwrite=True)
    assert json.loads((folder / "dataset.json").read_text())["demo_cohort"]["seed"] == 1
    (folder / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(FedsamError, match="a folder that is no demo cohort"):
        make_demo_dataset(folder, size="tiny")
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_an_unusual_folder_name(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="unusual name"):
        make_demo_dataset(tmp_path / "demo", size="tiny")


def test_waves_are_smooth_and_of_unit_size() -> None:
    points = grid_points((40, 40, 40), (2.0, 2.0, 2.0))
    values = Waves(np.random.default_rng(0), (20.0, 30.0), 12)(points)
    assert values.shape == (40, 40, 40)
    assert abs(values.std() - 1) < 0.25
    steepest = np.sqrt(2 * 12) * 2 * np.pi / 20.0 * 2.0  # all waves in step, at the shortest wavelength, over one voxel of 2 mm
    assert np.abs(np.diff(values, axis=0)).max() <= steepest
    assert np.allclose(points.mean(axis=(1, 2, 3)), 0)
