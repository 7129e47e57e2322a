"""What all comparisons of speed rest on: turns, ratios, ceilings, peaks."""

import sys

import pytest
import torch

from benchmarks.ceiling import Ceiling, measure_ceiling
from benchmarks.nnunet import timed
from benchmarks.side_by_side import in_turns, print_rows, rows


def test_programs_take_turns_and_change_their_order() -> None:
    order: list[str] = []
    seconds = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, turns=2)
    assert order == ["a", "b", "a", "b", "b", "a"] and {name: len(own) for name, own in seconds.items()} == {"a": 2, "b": 2}


def test_the_ratio_is_the_median_of_the_turns(capsys: pytest.CaptureFixture[str]) -> None:
    ceiling = Ceiling(flops=100.0, bytes_per_second=1.0, dtype="float32", device="cpu")
    found = rows(
        {"reference": [4.0, 8.0, 400.0], "ours": [1.0, 4.0, 4.0]},
        "64 px",
        units=16,
        flop={"reference": 400.0, "ours": 200.0},
        peaks={"reference": 2 << 20, "ours": 1 << 20},
        ceilings={"reference": ceiling, "ours": ceiling},
    )
    assert [row.ratio for row in found] == [1.0, 4.0] and [row.seconds for row in found] == [8.0, 4.0]
    assert [row.share for row in found] == [0.5, 0.5]
    print_rows(found, "images")
    printed = capsys.readouterr().out
    assert "images/s" in printed and "4.00" in printed and "50%" in printed


def test_a_ceiling_is_measured() -> None:
    ceiling = measure_ceiling(torch.device("cpu"), torch.float32, seconds=0.01, side=128)
    assert ceiling.flops > 1e6 and ceiling.bytes_per_second > 1e6 and ceiling.dtype == "float32"


def test_a_peak_is_what_the_run_adds() -> None:
    code = "from benchmarks.side_by_side import print_peak; before = bytearray(80 << 20); print_peak(lambda: bytearray(160 << 20).count(1))"
    assert 100 << 20 < int(timed([sys.executable, "-c", code], {}).output.splitlines()[-1]) < 240 << 20
