"""Whole rounds with every strategy and LoRA method: they finish, resume to the last bit, and do what they promise at the sites."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.coding import decode
from fedsam_pipeline.federation.codec.payload import Header, pack
from fedsam_pipeline.federation.codec.wires import to_bytes
from fedsam_pipeline.federation.lora_aggregation.pairs import factor_kind
from fedsam_pipeline.flower.aggregator import Aggregator
from fedsam_pipeline.flower.messages import FOLDED, PAYLOAD, from_arrays, from_record
from fedsam_pipeline.flower.site_worker import SiteWorker
from fedsam_pipeline.model.build import ModelSetup
from fedsam_pipeline.model.bundle import load_bundle
from fedsam_pipeline.model.lora_residuals import folded_residuals
from fedsam_pipeline.model.trained_files import write_adapter, write_documents
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from fedsam_pipeline.training.local_trainer import LocalTrainer
from tests.flower.federations import SITES, Federation, assert_equal

FOUR = SITES | {"site_d": 1}


def recipe(strategy: str = "fedavg", lora_method: str | None = None, weighting: str = "size", **options: float) -> Recipe:
    values = {"strategy": strategy, "lora_method": lora_method, "weighting": weighting, "options": options}
    return Recipe.from_dict(load_recipe("flap_sam").to_dict() | {"aggregation": values})


CHOICES: list[dict[str, Any]] = [
    *({"strategy": name} for name in ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian")),
    *({"lora_method": name} for name in ("naive", "rolora", "flexlora", "fedex", "lora_fair", "fedrot")),
    {"strategy": "fedprox", "lora_method": "fedex"},
    {"weighting": "validation"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(choice.values()))
def test_a_run_that_continues_equals_an_uninterrupted_one(tmp_path: Path, choice: dict[str, Any]) -> None:
    sites = {"site_a": 2, "site_b": 1, "site_c": 1}
    whole = Federation(tmp_path / "whole", sites, recipe(**choice), val_every=1).run()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in whole.values())
    first = Federation(tmp_path / "cut", sites, recipe(**choice), val_every=1)
    first.run_until(3)
    second = Federation(tmp_path / "cut", sites, recipe(**choice), val_every=1)
    assert_equal(second.run(rounds_done=2), whole)


def test_the_proximal_term_holds_sites_near_what_they_received(tmp_path: Path) -> None:
    def moved(mu: float) -> float:
        federation = Federation(tmp_path / f"{mu:g}", recipe=recipe("fedprox", proximal_mu=mu))
        began = {name: tensor.clone() for name, tensor in federation.adapted.trained_tensors().items()}
        federation.run()
        payload = from_record(federation.grid.received[0].content.array_records[PAYLOAD])
        back = decode(payload, began, federation.adapted.manifest)
        return sum(float((back[name] - began[name]).square().sum()) for name in back)

    assert moved(1e4) < 0.9 * moved(1e-6)


def test_rolora_trains_one_factor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, recipe=recipe(lora_method="rolora"))
    real, seen = federation.aggregator.add, []

    def add(site: str, tensors: dict[str, torch.Tensor], num_cases: int) -> None:
        sent = federation.aggregator._sent
        changed = {factor_kind(name) for name, tensor in tensors.items() if not torch.equal(tensor, sent[name])}
        seen.append((federation.aggregator._round, "A" in changed, "B" in changed))
        real(site, tensors, num_cases)

    monkeypatch.setattr(federation.aggregator, "add", add)
    federation.run()
    assert set(seen) == {(1, False, True), (2, True, False), (3, False, True)}


def test_a_factor_that_was_to_stay_frozen_is_refused_and_the_round_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SiteWorker._frozen
    monkeypatch.setattr(SiteWorker, "_frozen", lambda self, number: set() if self._setup.site == "site_b" else real(self, number))
    federation = Federation(tmp_path, recipe=recipe(lora_method="rolora"))
    federation.run()
    refused = [record.progress["refused"] for record in federation.records]
    for each in refused:
        assert list(each) == ["site_b"] and "this round freezes it" in each["site_b"]


def test_moments_of_factors_do_not_outlive_a_rebasing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[set[str]] = []
    real = LocalTrainer.load_optimizer_state

    def load(self: LocalTrainer, state: dict[str, torch.Tensor]) -> None:
        loaded.append({name.split("/", 1)[1] for name in state})
        real(self, state)

    monkeypatch.setattr(LocalTrainer, "load_optimizer_state", load)
    federation = Federation(tmp_path, recipe=recipe(lora_method="flexlora"))
    federation.run()
    later = loaded[len(SITES) :]
    assert later and all(names and not any(factor_kind(name) for name in names) for names in later)


def test_fedex_trains_scores_and_predicts_with_what_it_folded(tmp_path: Path) -> None:
    chosen = recipe(lora_method="fedex")
    federation = Federation(tmp_path, recipe=chosen)
    tensors = federation.run()
    residuals = federation.aggregator.residuals
    assert residuals
    folded = from_arrays(federation.grid.sent[-1].content.array_records[FOLDED])
    assert folded and not set(folded) & set(tensors)
    assert FOLDED not in federation.grid.sent[0].content.array_records
    assert FOLDED not in federation.grid.received[-1].content.array_records

    residuals = {name: 200 * tensor for name, tensor in residuals.items()}  # as many rounds would make them
    setup: ModelSetup = federation.setups[0].model
    manifest = federation.adapted.manifest
    write_documents(tmp_path / "fold", setup.plans, chosen, manifest)
    write_adapter(tmp_path / "fold", tensors | residuals, setup.bundle_info(3))
    loaded = load_bundle(tmp_path / "fold").model
    built = setup.build()
    built.load_tensors(tensors)
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        without = built.model(images)
        with folded_residuals(built.model, residuals):
            expected = built.model(images)
        torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, without, atol=1e-3)
    with pytest.raises(FedsamError, match="FedEx-LoRA folded residuals"):
        ModelSetup(setup.plans, chosen, None, start=tmp_path / "fold").build()


def test_an_update_that_is_refused_leaves_the_round_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = SiteWorker.train

    def train(self: SiteWorker, *arguments: Any, **named: Any) -> Any:
        encoded, result = real(self, *arguments, **named)
        if self._setup.site == "site_b":
            shapes = [entry.shape for entry in self.manifest.federated]
            zeros = [np.zeros(shape, np.float32) for shape in shapes]
            nans = to_bytes("fp32", [np.full(shape, np.nan) for shape in shapes], zeros)
            header = Header(
                wire="fp32",
                reference=None,
                result="0" * 16,
                tensors=tuple((entry.name, entry.shape) for entry in sorted(self.manifest.federated, key=lambda entry: entry.name)),
            )
            encoded = replace(encoded, payload=pack(header, nans))
        return encoded, result

    monkeypatch.setattr(SiteWorker, "train", train)
    federation = Federation(tmp_path)
    tensors = federation.run()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    progress = federation.records[0].progress
    assert sorted(progress["sites"]) == ["site_a", "site_c"]
    assert list(progress["refused"]) == ["site_b"] and "NaN or infinite" in progress["refused"]["site_b"]
    assert "the update of site_b was refused, the round goes on without it" in caplog.text


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({"strategy": "krum"}, "krum makes no sense with 3 sites"),
        ({"strategy": "bulyan"}, "bulyan makes no sense with 3 sites"),
        ({"strategy": "fedtrimmedavg"}, "fedtrimmedavg makes no sense with 3 sites"),
        ({"strategy": "fedadam", "lora_method": "flexlora"}, "cannot be combined with a LoRA method"),
        ({"strategy": "fedavg", "eta": 1.0}, "settings that fedavg cannot take"),
    ],
)
def test_a_strategy_without_meaning_is_refused_before_anything_runs(choice: dict[str, Any], named: str) -> None:
    with pytest.raises(FedsamError, match=named):
        Aggregator(recipe(**choice).aggregation, 3)


def test_memory_does_not_grow_with_the_sites_where_the_strategy_is_linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, FOUR)
    kept: list[int] = []
    real = federation.aggregator.add

    def add(*arguments: Any) -> None:
        real(*arguments)
        kept.append(len(federation.aggregator._updates))

    monkeypatch.setattr(federation.aggregator, "add", add)
    federation.run()
    assert set(kept) == {0}


def test_the_checkpoint_holds_the_strategys_state_beside_the_adapter(tmp_path: Path) -> None:
    federation = Federation(tmp_path, recipe=recipe("fedadam"))
    tensors = federation.run()
    saved = CheckpointSeries(tmp_path / "checkpoints", "round_").load(3)
    carried = {f"strategy/{kind}/{name}" for name in tensors for kind in "mv"}
    assert carried == {name for name in saved if name not in tensors and not name.startswith("held/")}
    other = Aggregator(recipe("fedavgm").aggregation, 3)
    with pytest.raises(FedsamError, match="state of the strategy does not fit"):
        other.restore(saved)
