"""One site sends its update a thousand times too large: the global model is that of the others, or of a strategy that withstands."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord

from fedsam_pipeline.federation.codec.coding import encode
from fedsam_pipeline.federation.update_bounds import UpdateBound
from fedsam_pipeline.flower.aggregator import Aggregator
from fedsam_pipeline.flower.replies import SiteFailed
from fedsam_pipeline.flower.site_worker import SiteWorker
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from tests.flower.federations import SITES, Federation, assert_equal

FIVE = SITES | {"site_d": 1, "site_e": 1}
HOSTILE = "site_b"


def recipe(strategy: str) -> Recipe:
    aggregation = {"strategy": strategy, "weighting": "equal"}
    return Recipe.from_dict(load_recipe("flap_sam").to_dict() | {"aggregation": aggregation})


def scale_update(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """``HOSTILE`` moves so many times as far as its training did."""
    real = SiteWorker.train

    def train(self: SiteWorker, *arguments: Any, **named: Any) -> Any:
        encoded, result = real(self, *arguments, **named)
        if self._setup.site == HOSTILE:
            far = {name: self._received[name] + factor * (tensor - self._received[name]) for name, tensor in encoded.decoded.items()}
            encoded = replace(encoded, payload=encode(far, self._received, "fp32", {}).payload)
        return encoded, result

    monkeypatch.setattr(SiteWorker, "train", train)


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return float(torch.sqrt(sum(((first[name] - second[name]).double() ** 2).sum() for name in first)))  # type: ignore[arg-type]


def without_hostile(folder: Path, strategy: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The run whose server never takes that site's update."""
    with monkeypatch.context() as patch:
        federation = Federation(folder, FIVE, recipe(strategy))
        real = federation.aggregator.add
        patch.setattr(federation.aggregator, "add", lambda site, *rest: None if site == HOSTILE else real(site, *rest))
        return federation.run()


@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_an_update_a_thousand_times_too_large_is_refused_and_the_model_is_that_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, strategy: str
) -> None:
    expected = without_hostile(tmp_path / "without", strategy, monkeypatch)
    scale_update(monkeypatch, 1000)
    federation = Federation(tmp_path / "with", FIVE, recipe(strategy))
    assert_equal(federation.run(), expected)
    for record in federation.records:
        assert list(record.progress["refused"]) == [HOSTILE]
        assert "times farther from where it began than training" in record.progress["refused"][HOSTILE]
    assert f"the update of {HOSTILE} was refused, the round goes on without it" in caplog.text


def test_without_the_bound_a_mean_is_ruined_and_robust_strategies_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bound is for, and what protects from updates that lie within it."""
    start = {name: tensor.clone() for name, tensor in Federation(tmp_path / "start").loop._downlink.held.items()}
    honest = {name: Federation(tmp_path / f"honest-{name}", FIVE, recipe(name)).run() for name in ("fedavg", "fedmedian", "krum")}
    walked = {name: distance(tensors, start) for name, tensors in honest.items()}
    monkeypatch.setattr(UpdateBound, "check", lambda *_arguments, **_named: None)
    scale_update(monkeypatch, 1000)
    away = {name: distance(Federation(tmp_path / name, FIVE, recipe(name)).run(), honest[name]) for name in honest}
    assert away["fedavg"] > 20 * walked["fedavg"]
    assert away["fedmedian"] < walked["fedmedian"] and away["krum"] < 2 * walked["krum"]


def test_a_hostile_update_within_the_bound_is_taken_and_a_median_withstands_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = {name: Federation(tmp_path / f"honest-{name}", FIVE, recipe(name)).run() for name in ("fedavg", "fedmedian")}
    scale_update(monkeypatch, -3)
    federations = {name: Federation(tmp_path / name, FIVE, recipe(name)) for name in honest}
    away = {name: distance(federation.run(), honest[name]) for name, federation in federations.items()}
    assert not any(record.progress["refused"] for record in federations["fedavg"].records)
    assert away["fedmedian"] < 0.7 * away["fedavg"]


def test_sites_refuse_a_first_state_that_they_cannot_build_themselves(tmp_path: Path) -> None:
    federation = Federation(tmp_path, recipe=recipe("fedavg"))
    crafted = {name: tensor + 0.01 for name, tensor in federation.loop._downlink.held.items()}
    with pytest.raises(SiteFailed, match="reports update_refused"):
        federation.loop.run(crafted, 0)
    log = (federation.setups[0].state_folder / "logs" / "site.log").read_text(encoding="utf-8")
    assert "times farther from where it began than training can have brought it" in log


@pytest.mark.parametrize(("strategy", "refused"), [("fedmedian", True), ("fedadam", False)])
def test_sites_refuse_a_later_state_that_no_training_can_have_reached(tmp_path: Path, strategy: str, refused: bool) -> None:
    """Where the server's part lies between the updates; a server's own optimizer has steps of its own."""
    federation = Federation(tmp_path, recipe=recipe(strategy))
    real = federation.aggregator.result
    federation.aggregator.result = lambda: {name: tensor + 50 for name, tensor in real().items()}  # type: ignore[method-assign]
    if refused:
        with pytest.raises(SiteFailed, match="reports update_refused"):
            federation.run()
        assert len(federation.records) == 1
    else:
        federation.run()


@pytest.mark.parametrize("key", ["round", "rounds", "local_steps", "learning_rate"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_schedule_that_bounds_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: float) -> None:
    federation = Federation(tmp_path)
    real = federation.loop._config

    def config(*arguments: Any, **named: Any) -> Any:
        made = real(*arguments, **named)
        made[key] = value if key != "learning_rate" or value != 1e9 else float("inf")
        return made

    monkeypatch.setattr(federation.loop, "_config", config)
    with pytest.raises(SiteFailed, match="reports agreement_broken"):
        federation.run()


@pytest.mark.parametrize("key", ["dp_clip", "proximal-mu"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_numbers_that_mean_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: float) -> None:
    federation = Federation(tmp_path)
    real = federation.loop._config
    monkeypatch.setattr(federation.loop, "_config", lambda *arguments, **named: ConfigRecord({**real(*arguments, **named), key: value}))
    with pytest.raises(SiteFailed, match="reports agreement_broken"):
        federation.run()


def test_base_weights_are_not_changed_by_residuals_that_no_fedex_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would go around all bounds."""
    federation = Federation(tmp_path, recipe=recipe("fedavg"))
    monkeypatch.setattr(Aggregator, "residuals", {"image_encoder.x.residual_A_q": torch.full((2, 3), 1e3)})
    with pytest.raises(SiteFailed, match="reports update_refused"):
        federation.run()
    log = (federation.setups[0].state_folder / "logs" / "site.log").read_text(encoding="utf-8")
    assert "where no FedEx-LoRA can have made any" in log
