"""Canonical JSON and its hash: one byte sequence for one value."""

import hashlib
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.specs.canonical import canonical, canonical_json, round_float, sha256_of

finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def test_floats_keep_nine_significant_digits() -> None:
    assert round_float(1 / 3) == 0.333333333
    assert round_float(123456789.4) == 123456789.0
    assert round_float(1.23456789049e-20) == 1.23456789e-20
    assert sha256_of([1 / 3]) == sha256_of([0.333333333])
    assert sha256_of([0.333333333]) != sha256_of([0.333333334])


@given(finite)
def test_rounding_twice_changes_nothing_and_moves_little(value: float) -> None:
    rounded = round_float(value)
    assert round_float(rounded) == rounded
    if abs(value) > 1e-300:
        assert math.isclose(rounded, value, rel_tol=5.1e-9)


def test_minus_zero_is_zero() -> None:
    assert canonical_json([-0.0, -1e-400]) == "[0.0,0.0]"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_have_a_hash(value: float) -> None:
    with pytest.raises(ValueError, match="finite numbers only"):
        sha256_of({"a": [value]})


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value: Any, source: random.Random) -> None:
    assert canonical_json(_shuffled(value, source)) == canonical_json(value)
    assert sha256_of(_shuffled(value, source)) == sha256_of(value)


def _shuffled(value: Any, source: random.Random) -> Any:
    if isinstance(value, list):
        return [_shuffled(item, source) for item in value]
    if isinstance(value, dict):
        keys = list(value)
        source.shuffle(keys)
        return {key: _shuffled(value[key], source) for key in keys}
    return value


@given(values)
def test_what_was_written_reads_back_to_the_same_hash(value: Any) -> None:
    assert sha256_of(json.loads(canonical_json(value))) == sha256_of(value)


def test_the_text_is_compact_and_keeps_letters_of_all_languages() -> None:
    assert canonical_json({"b": (1, True, None), "a": "Größe"}) == '{"a":"Größe","b":[1,true,null]}'
    assert canonical({2: "x", 10: "y"}) == {"10": "y", "2": "x"}


def test_the_hash_is_that_of_the_text() -> None:
    text = b'{"axis":0,"spacing":[5.0,0.8,0.8]}'
    assert sha256_of({"spacing": (5.0, 0.8, 0.8), "axis": 0}) == hashlib.sha256(text).hexdigest()
