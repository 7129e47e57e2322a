"""The arithmetic of a comparison: worked out by hand."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.pipeline.compare_files import comparison_csv, comparison_markdown
from fedsam_pipeline.pipeline.compare_table import MethodResult, Traffic, compare_methods, mean_traffic, traffic_of
from fedsam_pipeline.pipeline.peak_memory import worker_peak_bytes
from fedsam_pipeline.report.tradeoff import tradeoff_figure

SITES = ("a", "a", "a", "b", "b")


def method(name: str, *dice: float, missing: int = 0, protocol: str = "federated", seeds: int = 1) -> MethodResult:
    """Five cases, one class; HD95 is ten times what Dice lacks, the first ``missing`` cases have none."""
    scores = np.stack([np.array(dice)[:, None] + 0.1 * seed for seed in range(seeds)])
    lacking = np.zeros(scores.shape, dtype=bool)
    lacking[:, :missing] = True
    aggregates = protocol == "federated"
    return MethodResult(
        name,
        "lora",
        protocol,
        "fedavg" if aggregates else None,
        "fp32" if aggregates else None,
        0.005,
        False,
        scores,
        np.where(lacking, np.nan, 10 * (1 - scores)),
        lacking,
        Traffic(1e6, 2e6, 6e6) if aggregates else None,
        120.0,
        1 << 30,
    )


ONE = method("one", 0.5, 0.6, 0.7, 0.8, 0.8)
OTHER = method("other", 0.6, 0.7, 0.8, 0.9, 0.9)


def record(*methods: MethodResult) -> dict[str, Any]:
    compared = compare_methods(methods, SITES) | {"dataset": "Dataset001_Demo", "base_model": "tiny_random", "plans_name": "plans"}
    compared |= {"fold": "0", "rounds": 2, "local_steps": 5, "steps_a_site": 10, "failures": [], "notes": []}
    json.dumps(compared, allow_nan=False)  # it is written as JSON
    return compared


def test_means_worst_and_differences() -> None:
    one, other = record(ONE, OTHER)["methods"]
    assert one["dice"]["sites"]["a"]["value"] == pytest.approx(0.6)
    assert one["dice"]["mean"]["value"] == pytest.approx(0.7)
    assert one["dice"]["worst"]["site"] == "a"
    assert one["dice"]["sites"]["a"]["low"] < 0.6 < one["dice"]["sites"]["a"]["high"]
    assert one["dice"]["sites"]["b"]["low"] == pytest.approx(0.8)
    assert one["hd95"]["worst"]["site"] == "a"  # of distances the largest
    assert one["hd95"]["worst"]["value"] == pytest.approx(4.0)
    assert other["difference_to_reference"]["dice"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    assert other["difference_to_reference"]["hd95"] == pytest.approx({"value": -1.0, "low": -1.0, "high": -1.0})
    assert one["difference_to_best"]["dice"]["value"] == pytest.approx(-0.1)
    assert one["bytes"] == {"up_per_round": 1e6, "down_per_round": 2e6, "per_round": 3e6, "total": 6e6, "reference_over_this": 1.0}


def test_the_first_is_the_reference_and_the_highest_mean_the_best() -> None:
    found = record(ONE, OTHER, replace(ONE, name="third"))
    assert (found["reference"], found["best"]) == ("one", "other")
    assert found["cases"] == {"a": 3, "b": 2}


def test_the_best_exchanges_updates_where_any_method_does() -> None:
    pooled = method("pooled", 0.9, 0.9, 0.9, 0.9, 0.9, protocol="centralized")
    assert record(ONE, pooled)["best"] == "one"
    assert record(pooled, method("alone", 0.5, 0.5, 0.5, 0.5, 0.5, protocol="local"))["best"] == "pooled"


def test_what_the_exchange_gives_each_site() -> None:
    alone = method("alone", 0.4, 0.4, 0.4, 0.9, 0.9, protocol="local")
    one, _, slower = record(ONE, alone, replace(OTHER, name="slower", learning_rate=0.1))["methods"]
    assert one["difference_to_local"]["name"] == "alone"
    assert one["difference_to_local"]["dice"]["a"]["value"] == pytest.approx(0.2)
    assert one["difference_to_local"]["dice"]["a"]["low"] > 0.09
    assert one["difference_to_local"]["dice"]["b"] == pytest.approx({"value": -0.1, "low": -0.1, "high": -0.1})
    assert slower["difference_to_local"] is None  # another rate is another training
    assert "## Dice minus that of each site's own model" in comparison_markdown(record(ONE, alone))
    rows = list(csv.DictReader(io.StringIO(comparison_csv(record(alone, ONE)))))
    assert rows[0]["dice_minus_local_a"] == "" and float(rows[1]["dice_minus_local_a"]) == pytest.approx(0.2)


def test_distances_are_compared_where_both_have_one() -> None:
    """The method that found nothing in the hardest case must not look closer for it."""
    one, lazy = record(ONE, replace(method("lazy", 0.5, 0.6, 0.7, 0.8, 0.8, missing=1)))["methods"]
    assert lazy["hd95"]["missing"] == 1
    assert lazy["hd95"]["mean"]["value"] < one["hd95"]["mean"]["value"]
    assert lazy["difference_to_reference"]["hd95"]["value"] == pytest.approx(0.0)


def test_seeds_are_averaged_and_their_spread_is_told() -> None:
    found = record(method("one", 0.5, 0.6, 0.7, 0.8, 0.8, seeds=2))["methods"][0]
    assert found["seeds"] == 2
    assert found["dice"]["mean"]["value"] == pytest.approx(0.75)
    assert found["dice"]["seed_sd"] == pytest.approx(0.1 / np.sqrt(2))


def test_a_class_that_nobody_has_is_no_number() -> None:
    found = record(method("one", *[np.nan] * 5), ONE)
    assert found["best"] == "one" and found["methods"][0]["dice"]["mean"]["value"] is None
    assert "| one " in comparison_markdown(found)
    tradeoff_figure(found)


def test_traffic_is_what_the_messages_took() -> None:
    def entry(message: str, *sizes: tuple[int, int]) -> dict[str, Any]:
        sites = {f"s{i}": {"down": {"bytes_message": down}, "up": {"bytes_message": up}} for i, (down, up) in enumerate(sizes)}
        return {"message": message, "sites": sites}

    rounds = [entry("train.round", (100, 10), (100, 20)), entry("train.round", (300, 30), (300, 40)), entry("evaluate.fold", (7, 1))]
    found = traffic_of({"rounds": rounds})
    assert found == Traffic(up=50.0, down=400.0, total=908)
    assert mean_traffic([found, Traffic(150.0, 200.0, 92)]) == Traffic(100.0, 300.0, 500.0)


def test_tables_name_every_method_and_leave_empty_what_is_not_known() -> None:
    half = method("alone", 0.5, 0.5, 0.5, 0.5, 0.5, protocol="local")
    alone = replace(half, peak_memory=None, elsewhere={"a": np.where(np.array(SITES)[None, :, None] == "a", half.dice, np.nan)})
    found = record(ONE, alone) | {"failures": [{"run": "somewhere", "reason": "it\nbroke"}]}
    text = comparison_markdown(found)
    assert "FAILED somewhere: it broke" in text
    assert "0.7000 [" in text and "+0.0000 [+0.0000, +0.0000]" in text
    assert ["alone", "a", "0.5000", "-"] in [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    first, second = csv.DictReader(io.StringIO(comparison_csv(found)))
    assert float(first["bytes_per_round"]) == 3e6
    assert (second["bytes_total"], second["peak_memory_bytes"], second["strategy"]) == ("", "", "")


def test_the_figure_draws_points_for_traffic_and_lines_without() -> None:
    (ax,) = tradeoff_figure(record(ONE, OTHER, method("alone", 0.5, 0.5, 0.5, 0.5, 0.5, protocol="local"))).axes
    assert ax.get_xscale() == "log"
    names = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert sorted(names) == ["alone (no updates travel)", "one", "other"]


def test_the_peak_of_a_worker_is_seen_after_it_gave_the_memory_back() -> None:
    assert worker_peak_bytes() is None
    code = "data = b'x' * (80 << 20); del data; print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, "ray::worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        peak = worker_peak_bytes()
        worker.communicate("\n")
    assert peak is not None and 80 << 20 < peak < 1 << 30
