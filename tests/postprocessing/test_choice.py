"""The choice: nnU-Net's rule, sums of sites against all cases pooled, what a site may claim."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsam_pipeline.evaluation.metrics import counts, dice_from_counts
from fedsam_pipeline.postprocessing.apply import apply_rules
from fedsam_pipeline.postprocessing.candidates import questions, touched
from fedsam_pipeline.postprocessing.choice import choose, decide
from fedsam_pipeline.postprocessing.deltas import DeltaSums, add_sums, case_deltas, sum_cases
from fedsam_pipeline.specs.postprocessing import MaskRule

LABELS = {"background": 0, "organ": 1, "lesion": 2}
GROUPS: dict[str, tuple[int, ...]] = {"organ": (1,), "lesion": (2,)}
REGIONS: dict[str, tuple[int, ...]] = {"whole": (1, 2), "core": (2,)}
SPACING = (2.0, 1.0, 1.0)
VOLUMES = {"organ": (4.0, 20.0), "lesion": (4.0,)}
ALL, ORGAN, LESION = (MaskRule(kind="largest_component", label=name) for name in (None, "organ", "lesion"))
NAMES = tuple(GROUPS)


def case(generator: np.random.Generator, *, specks: int) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """A reference with an organ and a lesion, and a prediction of it that is off by specks and a hole; some voxels are ignored."""
    reference = np.zeros((6, 12, 12), np.int8)
    reference[1:5, 2:8, 2:8] = 1
    if generator.random() < 0.7:
        reference[2:4, 9:11, 3:6] = 2
    mask = reference.astype(np.uint8)
    for _ in range(specks):
        z, y, x = (int(generator.integers(0, size)) for size in mask.shape)
        mask[z, y, x] = int(generator.integers(0, 3))
    reference[:, 11] = -1
    return reference, mask


def cases(seed: int, number: int) -> list[tuple[NDArray[np.int8], NDArray[np.uint8]]]:
    generator = np.random.default_rng(seed)
    return [case(generator, specks=int(generator.integers(0, 20))) for _ in range(number)]


class Sites:
    """Sites that answer of their own cases."""

    def __init__(self, sites: Sequence[list[tuple[NDArray[np.int8], NDArray[np.uint8]]]], groups: dict[str, tuple[int, ...]]) -> None:
        self.sites, self.groups = sites, groups
        self.asked: list[tuple[Sequence[MaskRule], Sequence[MaskRule]]] = []

    def ask(self, decided: Sequence[MaskRule], candidates: Sequence[MaskRule]) -> DeltaSums:
        self.asked.append((decided, candidates))
        known = np.ones(len(self.groups), bool)
        parts = []
        for site in self.sites:
            deltas = [case_deltas(*each, SPACING, decided, candidates, LABELS, list(self.groups.values()), -1) for each in site]
            parts.append(sum_cases(deltas, [known] * len(deltas), list(self.groups)))
        return add_sums(parts, len(candidates))


def plain_choice(pooled: list[tuple[NDArray[np.int8], NDArray[np.uint8]]], groups: dict[str, tuple[int, ...]]) -> list[MaskRule]:
    """nnU-Net's rule as one would write it with all cases at hand, one rule after the other; absent in both masks counts 1."""

    def dice(steps: Sequence[MaskRule]) -> NDArray[np.float64]:
        tables = [
            counts(reference, apply_rules(mask, SPACING, steps, LABELS), 3, groups=list(groups.values()), ignore=-1)
            for reference, mask in pooled
        ]
        return np.asarray(np.nan_to_num(dice_from_counts(np.stack(tables)), nan=1.0).mean(axis=0))

    kept: list[MaskRule] = []
    for alternatives in (
        [ALL],
        [ORGAN],
        [LESION],
        *([MaskRule(kind="minimum_volume", label=name, min_volume_mm3=each) for each in VOLUMES[name]] for name in NAMES),
        *([MaskRule(kind="fill_holes", label=name)] for name in NAMES),
    ):
        before = dice(kept)
        gains = [dice([*kept, rule]) - before for rule in alternatives]
        allowed = [index for index, gain in enumerate(gains) if (gain > -1e-9).all() and gain.mean() > 1e-9]
        if allowed:
            kept.append(alternatives[max(allowed, key=lambda index: (round(float(gains[index].mean()), 9), -index))])
    return kept


@pytest.mark.parametrize("groups", [GROUPS, REGIONS])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_sums_of_sites_choose_what_pooled_cases_choose(groups: dict[str, tuple[int, ...]], seed: int) -> None:
    pooled = cases(seed, 5)
    asked = questions(LABELS, groups, VOLUMES)
    steps, decisions = choose(asked, Sites([pooled[:2], pooled[2:4], pooled[4:]], groups).ask, LABELS, groups)
    assert list(steps) == plain_choice(pooled, groups)
    assert [decision.rule for decision in decisions] == [rule for question in asked for rule in question]
    assert choose(asked, Sites([pooled], groups).ask, LABELS, groups)[0] == steps
    assert choose(asked, Sites([pooled[4:], pooled[2:4], pooled[:2]], groups).ask, LABELS, groups)[0] == steps


def test_the_deltas_are_those_of_whole_masks() -> None:
    candidates = [rule for question in questions(LABELS, GROUPS, VOLUMES) for rule in question]
    for reference, mask in cases(3, 6):
        found = case_deltas(reference, mask, SPACING, [ALL], candidates, LABELS, list(GROUPS.values()), -1)
        before = apply_rules(mask, SPACING, [ALL], LABELS)

        def dice(of: NDArray[np.uint8], reference: NDArray[np.int8] = reference) -> NDArray[np.float64]:
            return np.nan_to_num(dice_from_counts(counts(reference, of, 3, ignore=-1)), nan=1.0)

        for row, rule in zip(found, candidates, strict=True):
            np.testing.assert_allclose(row, dice(apply_rules(before, SPACING, [rule], LABELS)) - dice(before), atol=1e-12)


def test_the_last_false_positive_that_goes_is_a_gain() -> None:
    reference, mask = np.zeros((3, 3, 3), np.int8), np.zeros((3, 3, 3), np.uint8)
    mask[0, 0, 0] = 2
    rule = MaskRule(kind="minimum_volume", label="lesion", min_volume_mm3=3.0)
    assert case_deltas(reference, mask, SPACING, [], [rule], LABELS, list(GROUPS.values()), -1).tolist() == [[0.0, 1.0]]


def sums(cases: dict[str, int], *deltas: dict[str, float]) -> DeltaSums:
    return DeltaSums(cases, deltas)


def test_a_rule_is_kept_only_if_the_mean_improves_and_no_class_drops() -> None:
    both = {"organ": 10, "lesion": 5}

    def judged(delta: dict[str, float], number: dict[str, int] = both) -> tuple[bool, str]:
        decision = decide([ALL], sums(number, delta), LABELS, GROUPS)[0]
        return decision.kept, decision.why

    assert judged({"organ": 0.5, "lesion": 0.0}) == (True, "the mean improves and no class drops")
    assert judged({"organ": 5.0, "lesion": -0.01}) == (False, "drops lesion by 0.0020")
    assert judged({"organ": 0.0, "lesion": 0.0}) == (False, "the mean does not improve")
    assert judged({"organ": 1e-12, "lesion": -1e-12}) == (False, "the mean does not improve")  # the rounding of sums
    assert judged({"organ": 1.0}, {"organ": 10}) == (False, "no site told anything of lesion")
    assert decide([ALL], sums({}, {}), LABELS, GROUPS)[0].mean_delta is None
    assert decide([ALL], sums(both, {"organ": 1.0, "lesion": 1.0}), LABELS, GROUPS)[0].mean_delta == pytest.approx((0.1 + 0.2) / 2)


def test_of_several_volumes_the_one_that_gains_most_is_kept_and_of_equals_the_smaller() -> None:
    rules = [MaskRule(kind="minimum_volume", label="organ", min_volume_mm3=volume) for volume in (1.0, 2.0, 3.0)]
    number = {"organ": 10, "lesion": 10}
    rows = [{"organ": total, "lesion": 0.0} for total in (0.1, 0.3, 0.3)]
    decisions = decide(rules, sums(number, *rows), LABELS, GROUPS)
    assert [decision.kept for decision in decisions] == [False, True, False]
    assert decisions[0].why == decisions[2].why == "components of organ from 2 mm3 gains more"


def test_each_question_comes_with_what_was_kept_before() -> None:
    asked: list[tuple[Sequence[MaskRule], Sequence[MaskRule]]] = []

    def ask(decided: Sequence[MaskRule], candidates: Sequence[MaskRule]) -> DeltaSums:
        asked.append((decided, candidates))
        gains = 1.0 if candidates[0].kind == "largest_component" else 0.0
        return sums({"organ": 5, "lesion": 5}, *({"organ": gains, "lesion": 0.0} for _ in candidates))

    steps, decisions = choose(questions(LABELS, GROUPS, {}), ask, LABELS, GROUPS)
    assert steps == (ALL, ORGAN, LESION)
    assert [decided for decided, _ in asked] == [(), (ALL,), (ALL, ORGAN, LESION)]
    assert [decision.kept for decision in decisions] == [True, True, True, False, False]


def test_where_nobody_tells_anything_only_one_question_is_asked() -> None:
    sites = Sites([], GROUPS)
    assert choose(questions(LABELS, GROUPS, VOLUMES), sites.ask, LABELS, GROUPS) == ((), ())
    assert len(sites.asked) == 1


def test_rules_of_classes_that_one_score_sees_are_asked_one_after_the_other() -> None:
    assert [len(question) for question in questions(LABELS, GROUPS, VOLUMES)] == [1, 2, 3, 2]
    assert [len(question) for question in questions(LABELS, REGIONS, VOLUMES)] == [1, 1, 1, 2, 1, 1, 1]
    assert [len(question) for question in questions({"background": 0, "organ": 1}, {"organ": (1,)}, {})] == [1, 1]
    assert touched(ALL, LABELS, REGIONS) == {"whole", "core"}
    assert touched(ORGAN, LABELS, REGIONS) == {"whole"}


def test_what_a_site_did_not_annotate_is_not_summed() -> None:
    deltas = [np.array([[0.1, 0.5]]), np.array([[0.2, -0.7]])]
    found = sum_cases(deltas, [np.array([True, False]), np.array([True, True])], NAMES)
    assert found.cases == {"organ": 2, "lesion": 1}
    assert found.deltas[0] == pytest.approx({"organ": 0.3, "lesion": -0.7})
    alone = sum_cases(deltas, [np.array([True, False])] * 2, NAMES)
    assert alone.cases == {"organ": 2} and len(alone.deltas) == 1
    assert alone.deltas[0] == pytest.approx({"organ": 0.3})


def test_an_answer_survives_the_wire() -> None:
    told = sums({"organ": 7, "lesion": 5}, {"organ": 0.1 + 0.2, "lesion": -1e-17})
    read = DeltaSums.from_answer(json.loads(json.dumps(told.to_dict())), names=NAMES, candidates=1, most_cases=7)
    assert read == told


HOSTILE: list[tuple[object, str]] = [
    ([], "no answer of cases and deltas"),
    ({"cases": {}}, "no answer of cases and deltas"),
    ({"cases": {}, "deltas": [], "more": 1}, "no answer of cases and deltas"),
    ({"cases": {"liver": 5}, "deltas": [{"liver": 0.0}]}, "other classes than asked for"),
    ({"cases": ["organ"], "deltas": [{}]}, "other classes than asked for"),
    ({"cases": {"organ": 8}, "deltas": [{"organ": 0.0}]}, "8 cases of organ, the site has 7"),
    ({"cases": {"organ": 0}, "deltas": [{"organ": 0.0}]}, "0 cases of organ"),
    ({"cases": {"organ": True}, "deltas": [{"organ": 0.0}]}, "True cases of organ"),
    ({"cases": {"organ": 5.0}, "deltas": [{"organ": 0.0}]}, "5.0 cases of organ"),
    ({"cases": {"organ": 5}, "deltas": []}, "does not answer 1 rules"),
    ({"cases": {"organ": 5}, "deltas": [{"organ": 0.0}] * 2}, "does not answer 1 rules"),
    ({"cases": {"organ": 5}, "deltas": {"organ": 0.0}}, "does not answer 1 rules"),
    ({"cases": {"organ": 5}, "deltas": [{}]}, "sums over other classes than it counts"),
    ({"cases": {"organ": 5}, "deltas": [{"organ": 0.0, "lesion": 0.0}]}, "sums over other classes than it counts"),
    ({"cases": {"organ": 5}, "deltas": [{"organ": float("nan")}]}, "a sum of nan over 5 cases of organ"),
    ({"cases": {"organ": 5}, "deltas": [{"organ": float("-inf")}]}, "a sum of -inf"),
    ({"cases": {"organ": 5}, "deltas": [{"organ": 5.01}]}, "a sum of 5.01 over 5 cases"),
    ({"cases": {"organ": 5}, "deltas": [{"organ": "1"}]}, "a sum of '1'"),
    ({"cases": {"organ": 5}, "deltas": [{"organ": False}]}, "a sum of False"),
    ({"cases": {"organ": 5}, "deltas": [{"organ": 10**400}]}, "a sum of 1000"),
]


@pytest.mark.parametrize(("value", "reason"), HOSTILE)
def test_what_cannot_be_is_refused_with_the_reason(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        DeltaSums.from_answer(value, names=NAMES, candidates=1, most_cases=7)
    assert len(str(caught.value)) < 120
