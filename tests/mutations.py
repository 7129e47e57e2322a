"""Valid inputs made invalid: for the tests of everything that reads bytes from outside."""

import copy
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

JUNK: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    math.nan,
    -math.inf,
    "",
    "0",
    "..",
    "../../outside",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "x" * 5000,
    "9" * 5000,
    [],
    {},
    [None],
    {"": None},
    [[[[]]]],
)
"""values that a parser may not have been written for"""
NAMES = ("", "..", "a\0b", "\ud800", "x" * 5000)
"""of a key"""


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def changed_once(valid: Any) -> Iterator[tuple[str, Any]]:
    """A JSON value with each of ``JUNK`` in each place, and with each key renamed to each name that is none; where it was changed, too."""
    for number, (_, key) in enumerate(_places(valid)):
        for junk in JUNK:
            value = copy.deepcopy(valid)
            container, _ = _places(value)[number]
            container[key] = copy.deepcopy(junk)
            yield f"{number}: {key} = {type(junk).__name__}", value
        for name in NAMES if isinstance(key, str) else ():
            value = copy.deepcopy(valid)
            container, _ = _places(value)[number]
            container[name] = container.pop(key)
            yield f"{number}: {key} renamed", value


@st.composite
def mutated_json(draw: st.DrawFn, valid: Any) -> Any:
    """A JSON value with one to three places changed: junk, a value from elsewhere in it, a key gone, renamed or added, an item doubled."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(value)
        if not places:
            break
        container, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(["junk", "junk", "elsewhere", "gone", "renamed", "more"])):
            case "junk":
                container[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
            case "elsewhere":
                other, place = places[draw(st.integers(0, len(places) - 1))]
                container[key] = copy.deepcopy(other[place])
            case "gone":
                del container[key]
            case "renamed" if isinstance(container, dict):
                container[draw(st.sampled_from([*NAMES, f"{key} ", str(key).upper()]))] = container.pop(key)
            case _ if isinstance(container, dict):
                container[f"{key}_"] = copy.deepcopy(container[key])
            case _:
                container.insert(key, copy.deepcopy(container[key]))
    return value


@st.composite
def mutated_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bytes with one to four changes: bits flipped, numbers made extreme, a piece cut out, doubled or zeroed, the end cut off."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        if not content:
            break
        at = draw(st.integers(0, len(content) - 1))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["bit", "bit", "number", "out", "double", "zeros", "end"])):
            case "bit":
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                extreme = draw(
                    st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0\0\0\x80", b"\0" * 7 + b"\x80", b"\xff" * 7 + b"\x7f", b"\x01\0\0\0"])
                )
                content[at : at + len(extreme)] = extreme
            case "out":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length]
            case "zeros":
                content[at : at + length] = bytes(len(content[at : at + length]))
            case _:
                del content[at:]
    return bytes(content)
