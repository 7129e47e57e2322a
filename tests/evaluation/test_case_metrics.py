"""All metrics of one case: volumes by hand, what empty masks count, regions and ignored voxels in every metric."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsam_pipeline.evaluation.case_metrics import MetricSettings, empty_mask_table, measure
from fedsam_pipeline.evaluation.surface import hd95_of_labels

SPACING = (5.0, 2.0, 1.0)
SETTINGS = MetricSettings(nsd_tolerances=(1.0, 2.5))
MEASURED = {metric.name for metric in SETTINGS.metrics} - {"Dice", "IoU"}


def _labels(**slabs: tuple[int, int]) -> NDArray[np.uint8]:
    """A row of 20 voxels along x, 3 x 3 across; ``v1=(2, 5)`` sets value 1 there."""
    array = np.zeros((3, 3, 20), np.uint8)
    for name, (start, stop) in slabs.items():
        array[..., start:stop] = int(name[1:])
    return array


def test_a_shifted_class_by_hand() -> None:
    found = measure(_labels(v1=(2, 6)), _labels(v1=(3, 8)), [(1,)], SPACING, SETTINGS)
    assert found.keys() >= MEASURED
    one = {name: values[0] for name, values in found.items()}
    voxel = 0.01  # ml
    assert one["RefVolume_ml"] == pytest.approx(9 * 4 * voxel) and one["PredVolume_ml"] == pytest.approx(9 * 5 * voxel)
    assert one["VolumeError_ml"] == one["AbsVolumeError_ml"] == pytest.approx(9 * voxel)
    assert one["VolumeError_rel"] == one["AbsVolumeError_rel"] == pytest.approx(0.25)
    assert one["HD95"] == 2 and 0 < one["ASSD"] < 1
    assert 0.5 < one["NSD_1mm"] < 1 == one["NSD_2.5mm"]
    assert (one["LesionF1"], one["LesionTP"], one["LesionFP"], one["LesionFN"]) == (1, 1, 0, 0)
    smaller = measure(_labels(v1=(3, 8)), _labels(v1=(2, 6)), [(1,)], SPACING, SETTINGS)
    assert smaller["VolumeError_rel"][0] == pytest.approx(-0.2) and smaller["AbsVolumeError_rel"][0] == pytest.approx(0.2)


def test_empty_masks_are_what_the_table_says() -> None:
    """Every cell of the table that the command prints, against a class in one mask, in the other, and in neither."""
    volume = 9 * 4 * 0.01
    full, empty = _labels(v1=(2, 6)), _labels()
    neither, missed, invented = (measure(*pair, [(1,)], SPACING, SETTINGS) for pair in ((empty, empty), (full, empty), (empty, full)))
    words = {"0": 0.0, "1": 1.0, "-1": -1.0, "the volume": volume, "minus the volume": -volume}
    seen = set()
    for names, excluded, *cells in empty_mask_table(SETTINGS.metrics)[1:]:
        assert excluded == "excluded"
        for name in set(names.split(", ")) & MEASURED:
            seen.add(name)
            assert np.isnan(neither[name][0]), name
            for cell, found in zip(cells, (missed, invented), strict=True):
                if cell.startswith("no value"):
                    assert np.isnan(found[name][0]), name
                else:
                    assert found[name][0] == pytest.approx(words[cell]), name
    assert seen == MEASURED


def test_regions_are_measured_as_one_mask() -> None:
    reference, prediction = _labels(v1=(2, 5), v2=(5, 8)), _labels(v1=(2, 6), v2=(6, 9))
    regions = measure(reference, prediction, [(1, 2), (2,)], SPACING, SETTINGS)
    united = measure((reference > 0).astype(np.uint8), (prediction > 0).astype(np.uint8), [(1,)], SPACING, SETTINGS)
    alone = measure(np.where(reference == 2, 1, 0), np.where(prediction == 2, 1, 0), [(1,)], SPACING, SETTINGS)
    for name, values in regions.items():
        assert (values[0], values[1]) == (united[name][0], alone[name][0]), name


def test_ignored_voxels_change_no_metric() -> None:
    """Whatever is predicted under the ignore label, the values are those of background there."""
    reference = _labels(v1=(2, 6), v3=(10, 16))
    clean = measure(_labels(v1=(2, 6)), _labels(v1=(3, 7)), [(1,), (2,)], SPACING, SETTINGS)
    for predicted in (_labels(v1=(3, 7)), _labels(v1=(3, 7), v2=(11, 15)), np.maximum(_labels(v1=(3, 7)), _labels(v1=(10, 16)))):
        found = measure(reference, predicted, [(1,), (2,)], SPACING, SETTINGS, ignore=3)
        for name, values in clean.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_hd95_is_the_one_of_other_commands() -> None:
    generator = np.random.default_rng(3)
    reference, prediction = generator.integers(0, 4, (2, 6, 7, 8))
    groups = [(1,), (2, 3), (3,)]
    found = measure(reference, prediction, groups, SPACING, SETTINGS)
    np.testing.assert_array_equal(found["HD95"], hd95_of_labels(reference, prediction, groups, SPACING))


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        measure(np.ones((2, 2, 2), int), np.ones((2, 2, 3), int), [(1,)], SPACING, SETTINGS)
