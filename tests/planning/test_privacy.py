"""The privacy floor: whatever the cases are, no released number stands for fewer of them, and all that is released is true."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.planning.grids import INTENSITY_TREE, LINEAR_TREE, Tree, exact_counts, intensity_value, quantile
from fedsam_pipeline.planning.measures import CaseMeasures, ChannelMeasures, ChannelPool, PositionCounts, SiteMeasures, count_nodes
from fedsam_pipeline.planning.privacy import coarsen, release
from fedsam_pipeline.specs.fingerprint import CASE_MASS, Bin, Counts, Fingerprint, WithheldFingerprint
from tests.planning.fingerprints import fingerprint_of, pooled, random_case

FLOOR = st.integers(2, 6)
POSITIONS = st.lists(st.one_of(st.integers(0, 40), st.integers(500, 530), st.integers(0, 10**6)), min_size=6, max_size=60)
MASSES = st.dictionaries(st.integers(-8, 8), st.integers(1, 10**9), min_size=1, max_size=5)


def counted(positions: Sequence[int]) -> PositionCounts:
    return {position: positions.count(position) for position in positions}


def coarsened(positions: Sequence[int], floor: int) -> Counts:
    return coarsen(count_nodes(counted(positions), LINEAR_TREE), LINEAR_TREE, floor, spread=False)


def is_of(tree: Tree, each: Bin) -> bool:
    return any(tree.bin(tree.node(each.high, level)) == each for level in range(tree.depth + 1))


@given(POSITIONS, FLOOR)
def test_every_count_stands_for_the_floor_and_is_true(positions: list[int], floor: int) -> None:
    released = coarsened(positions, floor)
    assert sum(released.values()) == len(positions)
    assert all(count >= floor and is_of(LINEAR_TREE, each) for each, count in released.items())
    bins = [each for each, count in released.items() for _ in range(count)]
    lows, values, highs = sorted(each.low for each in bins), sorted(positions), sorted(each.high for each in bins)
    assert all(low <= value <= high for low, value, high in zip(lows, values, highs, strict=True))  # each case has a bin that holds it


@given(POSITIONS)
def test_a_floor_of_one_changes_nothing(positions: list[int]) -> None:
    assert coarsened(positions, 1) == exact_counts(counted(positions))


@given(POSITIONS, FLOOR)
def test_positions_of_many_cases_stay_fine(positions: list[int], floor: int) -> None:
    crowded = positions + 700 * [512]
    released = coarsened(crowded, floor)
    assert released[Bin(512, 512)] >= 700 - 2 * floor * LINEAR_TREE.depth
    assert quantile(released, 0.5) == np.median(crowded)


def test_an_outlier_takes_just_as_many_with_it_as_the_floor_asks() -> None:
    assert coarsened([1000] * 200 + [900], 5) == {Bin(683, 1194): 5, Bin(1000, 1000): 196}
    assert coarsened([1000] * 8 + [900], 5) == {Bin(683, 1194): 9}  # four of eight would leave too few
    assert coarsened([999] * 5 + [1000] * 5, 5) == {Bin(999, 999): 5, Bin(1000, 1000): 5}
    assert coarsened([3] * 4 + [4] * 4, 5) == {Bin(3, 4): 8}


def case(masses: dict[int, int] | None = None, classes: Sequence[str] = ("organ",), z: int = 1000) -> CaseMeasures:
    """A case of stated numbers; without masses it has no foreground."""
    channels: tuple[ChannelMeasures, ...] = ()
    if masses:
        positions = sorted(masses)
        values = np.array([masses[position] for position in positions], np.float64)
        shares = np.floor(values / values.sum() * CASE_MASS).astype(np.int64)
        shares[0] += CASE_MASS - shares.sum()
        channels = (ChannelMeasures(5.0, 2.0, np.array(positions, np.int32), shares.astype(np.int32)),)
    return CaseMeasures((z, 1000, 1000, 20, 30, 30, 200, 300, 300, 1000), channels, dict.fromkeys(classes, (400, 1, 150, 140, 130)))


def cases_of_bins(histogram: Counts, cases: Sequence[dict[int, int]]) -> dict[Bin, list[int]] | None:
    """Bin to what each case gives to it, found by trying which positions make up which bin's mass; ``None`` where nothing fits."""
    positions = sorted({position for masses in cases for position in masses})

    def place(number: int, left: dict[Bin, int], given_by: dict[Bin, list[int]]) -> dict[Bin, list[int]] | None:
        if number == len(positions):
            return given_by if not any(left.values()) else None
        parts = [masses.get(positions[number], 0) for masses in cases]
        for each in left:
            if each.low <= positions[number] <= each.high and sum(parts) <= left[each]:
                added = [before + part for before, part in zip(given_by[each], parts, strict=True)]
                found = place(number + 1, left | {each: left[each] - sum(parts)}, given_by | {each: added})
                if found is not None:
                    return found
        return None

    return place(0, dict(histogram), {each: [0] * len(cases) for each in histogram})


@settings(max_examples=60, deadline=None)
@given(st.lists(MASSES, min_size=6, max_size=12), FLOOR)
def test_intensities_come_from_the_floor_and_no_case_gives_more_than_half(wanted: list[dict[int, int]], floor: int) -> None:
    cases = [case(masses) for masses in wanted]
    histogram = fingerprint_of(cases, floor).channels[0].histogram
    assert sum(histogram.values()) == len(cases) * CASE_MASS
    assert all(is_of(INTENSITY_TREE, each) for each in histogram)
    spread = [dict(zip(each.channels[0].positions.tolist(), each.channels[0].masses.tolist(), strict=True)) for each in cases]
    found = cases_of_bins(histogram, spread)
    assert found is not None
    for parts in found.values():
        assert sum(part > 0 for part in parts) >= floor
        assert 2 * max(parts) <= sum(parts)


def test_one_case_in_the_tail_does_not_spoil_the_others() -> None:
    cases = [case(dict.fromkeys(range(100, 200), 1000)) for _ in range(9)]
    cases.append(case(dict.fromkeys(range(100, 200), 1000) | {900: 200}))
    histogram = fingerprint_of(cases, 5).channels[0].histogram
    assert Bin(900, 900) not in histogram
    assert sum(each.low == each.high for each in histogram) >= 95
    assert [quantile(histogram, q) for q in (0.005, 0.5)] == [100, 150]


def test_a_site_of_few_cases_says_so_and_nothing_else() -> None:
    site = pooled([random_case(seed) for seed in range(4)])
    document, held_back = release(site, 5)
    assert document.to_dict() == {"schema_version": 2, "withheld": "this site has too few cases for its privacy floor of 5"}
    assert held_back == ("the whole fingerprint: 4 cases, fewer than 5",)
    assert release(pooled([random_case(0)]), 5).document == document  # the number of cases does not show
    assert isinstance(release(site, 4).document, Fingerprint)


def text(cases: Sequence[CaseMeasures], floor: int = 5) -> str:
    return json.dumps(release(pooled(cases, {"background": 0, "organ": 1, "lesion": 2}), floor).document.to_dict())


def test_no_case_with_a_class_looks_like_few() -> None:
    plain, with_lesion = case({5: 1}), case({5: 1}, ["organ", "lesion"])
    assert text([plain] * 12) == text([plain] * 8 + [with_lesion] * 4)
    assert text([plain] * 12) != text([plain] * 7 + [with_lesion] * 5)


def test_few_cases_without_a_class_look_like_five() -> None:
    plain, with_lesion = case({5: 1}), case({5: 1}, ["organ", "lesion"])
    texts = [text([plain] * number + [with_lesion] * (20 - number)) for number in range(7)]
    assert texts[1] == texts[2] == texts[3] == texts[4] == texts[5]
    assert len({texts[0], texts[1], texts[6]}) == 3
    found = fingerprint_of([plain] * 1 + [with_lesion] * 19, 5)
    assert (found.num_cases, found.classes["organ"].num_cases, found.classes["lesion"].num_cases) == (20, 20, 15)


def test_few_cases_without_foreground_are_left_out() -> None:
    full, empty = case({5: 1}), case(None, [], z=7000)
    assert text([full] * 12) == text([full] * 12 + [empty] * 4)
    found = fingerprint_of([full] * 12 + [empty] * 5, 5)
    assert (found.num_cases, found.channels[0].moments.weight) == (17, 12)
    assert found.spacing[0] == {Bin(1000, 1000): 12, Bin(7000, 7000): 5}
    assert fingerprint_of([full] * 12 + [empty], 1).num_cases == 13


def test_few_cases_with_foreground_release_their_geometry_only() -> None:
    site = pooled([case({5: 1})] * 4 + [case(None, [])] * 4)
    document, held_back = release(site, 5)
    assert isinstance(document, Fingerprint)
    assert (document.num_cases, document.channels[0].moments.weight, document.channels[0].histogram, document.classes) == (8, 0, {}, {})
    assert held_back == ("intensities and classes: 4 cases with foreground, fewer than 5",)


def test_a_patient_with_several_cases_counts_once() -> None:
    cases = [case({5: 1}, z=1000 + number // 3) for number in range(18)]
    assert Bin(1001, 1001) not in released_spacing(cases, 5, cases_a_patient=3)
    assert all(count >= 6 for count in released_spacing(cases, 2, cases_a_patient=3).values())
    document, held_back = release(pooled(cases), 7, cases_a_patient=3)
    assert isinstance(document, WithheldFingerprint)
    assert held_back == ("the whole fingerprint: 18 cases, fewer than 21 (7 patients of up to 3)",)
    assert released_spacing(cases, 1, cases_a_patient=3) == exact_counts({1000 + number: 3 for number in range(6)})


def released_spacing(cases: Sequence[CaseMeasures], floor: int, cases_a_patient: int) -> Counts:
    document = release(pooled(cases), floor, cases_a_patient=cases_a_patient).document
    assert isinstance(document, Fingerprint)
    assert document.privacy_floor == floor
    return document.spacing[0]


def test_the_order_of_cases_does_not_show_in_the_counts() -> None:
    cases = [random_case(seed, scale=10.0 ** (seed % 4)) for seed in range(9)]
    one, other = fingerprint_of(cases, 3), fingerprint_of(cases[::-1], 3)
    silent = {"channels": {"__all__": {"moments"}}}
    assert one.model_dump(exclude=silent) == other.model_dump(exclude=silent)


def test_a_file_keeps_coarse_bins() -> None:
    found = fingerprint_of([random_case(seed, scale=30.0) for seed in range(8)], 4)
    assert Fingerprint.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert any(each.low < each.high for each in found.channels[0].histogram)


def test_pooling_does_not_grow_with_the_number_of_cases() -> None:
    site: SiteMeasures = pooled([random_case(0)])
    before = len(site.channels[0].nodes)
    for _ in range(50):
        site.add(random_case(0))
    assert len(site.channels[0].nodes) == before
    assert site.num_cases == 51


def test_what_is_pooled_of_a_node_is_what_the_cases_give() -> None:
    pool = ChannelPool()
    for masses in ({-3: 1, 4: 3}, {-3: 1, 5: 1}, {4: 1}):
        pool.add(case(masses).channels[0])
    leaf, pair = pool.nodes[INTENSITY_TREE.node(4, 0)], pool.nodes[INTENSITY_TREE.node(4, 2)]
    assert (leaf.mass, leaf.cases, leaf.largest) == (1_750_000_000, 2, CASE_MASS)
    assert INTENSITY_TREE.bin(INTENSITY_TREE.node(4, 2)) == (3, 6)
    assert (pair.mass, pair.cases, pair.largest) == (2_250_000_000, 3, CASE_MASS)
    assert intensity_value(4) > 0


def test_a_channel_that_another_case_lacks_is_refused() -> None:
    site = pooled([random_case(0, channels=2)])
    with pytest.raises(ValueError, match="zip"):
        site.add(replace(random_case(1), classes={}))
