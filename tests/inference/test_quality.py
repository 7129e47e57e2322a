"""From measures to flags in words."""

from typing import Any

import numpy as np
import pytest
import torch

from fedsam_pipeline.inference.agreement import Agreement, CaseAgreement
from fedsam_pipeline.inference.coverage_check import ImageView
from fedsam_pipeline.inference.quality import judge_case
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.specs.coverage import Coverage
from fedsam_pipeline.specs.quality import QualityRow
from tests.inference.coverage_for_tests import make_coverage
from tests.inference.plans_for_tests import make_plans

MASK = np.ones((2, 2, 4), np.uint8)


def row(
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    extent: tuple[float, float, float] = (10.0, 10.0, 10.0),
    outside: int = 0,
    mask: np.ndarray = MASK,
    agreement: CaseAgreement = CaseAgreement(None, None),  # noqa: B008  (frozen)
    coverage: Coverage | None = None,
    unknown: bool = False,
) -> QualityRow:
    """``outside``: so many voxels of each slice."""
    bits = np.packbits(np.arange(8) < outside)
    view = ImageView(spacing, extent, {"MR": None if unknown else np.stack([bits, bits])})
    known = None if unknown else coverage or make_coverage()
    return judge_case("x", "x.nii.gz", view, mask, agreement, plans=make_plans(), coverage=known, rules=load_thresholds().quality)


def agree(*labels: list[int]) -> Agreement:
    agreement = Agreement(len(labels), 3)
    agreement.add([torch.tensor([[own]], dtype=torch.int16) for own in labels])
    return agreement


def test_nothing_speaks_against_a_planned_case() -> None:
    found = row(outside=1)
    assert (found.flags, found.outside, found.foreground_voxels) == ((), {"MR": 0.125}, 16)
    assert found.severity == pytest.approx(0.5)
    assert (found.folds_dice, found.mirrors_dice) == ({}, {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing": (5.0, 1.0, 1.0)}, "spacing z 5 mm, planned for 0.8 to 1.2 mm"),
        ({"spacing": (1.0, 1.0, 0.25)}, "spacing x 0.25 mm, planned for 1 mm"),
        ({"extent": (10.0, 60.0, 10.0)}, "extent y 60 mm, planned for 8 to 20 mm"),
        ({"outside": 4}, "50% of the foreground's MR intensities are not of the planned 50 to 150 or 1000 to 2000"),
        ({"mask": 0 * MASK}, "no foreground found; 100% of the planned cases hold some"),
        (
            {"agreement": CaseAgreement(agree([1, 1, 1, 2], [1, 0, 0, 2]), None)},
            "folds agree on anterior at a mean Dice of 0.50 only, below 0.7",
        ),
        (
            {"agreement": CaseAgreement(None, agree([0, 2, 2, 2], [2, 0, 0, 2])), "unknown": True},
            "mirrored images agree on posterior at a mean Dice of 0.40 only, below 0.7",
        ),
    ],
)
def test_each_measure_is_flagged_in_words(changes: dict[str, Any], words: str) -> None:
    found = row(**changes)
    assert found.flags == (words,)
    assert found.severity > 1


def test_margins_are_not_flagged() -> None:
    found = row(spacing=(1.3, 1.09, 0.92), extent=(4.6, 21.9, 10.0))
    assert found.flags == ()
    assert 0.9 < found.severity < 1


def test_the_worst_flag_stands_first_and_gives_the_severity() -> None:
    found = row(spacing=(6.0, 1.3, 1.0), outside=8, agreement=CaseAgreement(agree([1, 1], [1, 0]), agree([1, 2], [1, 2])))
    assert [words.split()[0] for words in found.flags] == ["spacing", "100%", "spacing", "folds"]
    assert found.severity == pytest.approx(5 / 1.1)
    assert found.folds_dice == {"anterior": pytest.approx(2 / 3), "posterior": None}
    assert found.mirrors_dice == {"anterior": 1.0, "posterior": 1.0}


def test_an_empty_mask_is_usual_where_many_planned_cases_are_empty() -> None:
    found = row(mask=0 * MASK, coverage=make_coverage(foreground_share=0.5))
    assert (found.flags, found.severity, found.outside) == ((), 0.0, {"MR": None})
