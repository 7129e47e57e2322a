"""Differential privacy of sites: what is clipped, how much noise there is, what it spends, and that no release goes beyond the budget."""

import json
import math
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_chain import AUDIT_FILE, read_chain
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.coding import decode, encode
from fedsam_pipeline.flower import private_rounds
from fedsam_pipeline.flower.aggregator import Aggregator
from fedsam_pipeline.flower.clipping import clipped
from fedsam_pipeline.flower.messages import PAYLOAD, from_record
from fedsam_pipeline.flower.private_rounds import LEDGER_FILE, PrivateRounds, gaussian_noise, noise_multiplier
from fedsam_pipeline.flower.site_worker import SiteWorker
from fedsam_pipeline.specs.privacy_budget import PrivacyBudget
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from tests.flower.federations import SCHEDULE, SITES, Federation
from tests.flower.grids import DirectGrid

EQUAL = Recipe.from_dict(load_recipe("flap_sam").to_dict() | {"aggregation": {"strategy": "fedavg", "weighting": "equal"}})
BUDGET = PrivacyBudget(epsilon=8.0, delta=1e-2, clip=0.01)


def federation(folder: Path, budget: PrivacyBudget | None = BUDGET, **named: Any) -> Federation:
    return Federation(folder, recipe=EQUAL, budget=budget, **named)


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(((first[name] - second[name]).double() ** 2).sum()) for name in first))


def without_noise(patch: pytest.MonkeyPatch) -> list[float]:
    """No noise is drawn; the deviations that were asked for."""
    asked: list[float] = []

    def noise(shape: tuple[int, ...], deviation: float) -> Any:
        asked.append(deviation)
        return np.zeros(shape)

    patch.setattr(private_rounds, "gaussian_noise", noise)
    return asked


@settings(max_examples=30, deadline=None)
@given(epsilon=st.floats(0.1, 50), delta=st.floats(1e-8, 0.1), rounds=st.integers(1, 200))
def test_the_noise_keeps_to_the_budget_by_the_exact_formula_too(epsilon: float, delta: float, rounds: int) -> None:
    """Balle & Wang, ICML 2018, arXiv:1805.06530, theorem 8: rounds compose to one Gaussian mechanism; the accountant bounds it."""
    z = noise_multiplier(PrivacyBudget(epsilon, delta, 1.0), rounds, sites=4)
    whole = z / math.sqrt(rounds)
    exact = norm.cdf(0.5 / whole - epsilon * whole) - math.exp(epsilon) * norm.cdf(-0.5 / whole - epsilon * whole)
    assert exact <= delta
    assert noise_multiplier(PrivacyBudget(epsilon, delta, 1.0), rounds + 5, sites=4) > z
    assert noise_multiplier(PrivacyBudget(epsilon * 1.2, delta, 1.0), rounds, sites=4) < z


def test_a_budget_that_no_noise_keeps_to_is_refused() -> None:
    with pytest.raises(FedsamError, match="no noise keeps so many rounds to this privacy budget"):
        noise_multiplier(PrivacyBudget(1e-9, 1e-9, 1.0), 1000, sites=4)


def test_noise_is_normal_and_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    first = gaussian_noise((50, 400), 2.5)
    np.random.seed(0)
    torch.manual_seed(0)
    second = gaussian_noise((50, 400), 2.5)
    assert first.shape == (50, 400) and not np.any(first == second)
    assert kstest(first.ravel() / 2.5, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(first.ravel()[:-1], first.ravel()[1:])[0, 1]) < 0.05
    monkeypatch.setattr(os, "urandom", lambda size: bytes(size))
    assert gaussian_noise((2,), 1.0) == pytest.approx(norm.ppf(2.0**-54))
    assert isinstance(gaussian_noise((), 1.0), np.ndarray) and gaussian_noise((0, 3), 1.0).shape == (0, 3)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.floats(1e-6, 1e6), bound=st.floats(1e-3, 1e3))
def test_clipping_bounds_the_norm_and_keeps_the_direction(seed: int, size: float, bound: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = {"a": torch.randn(3, 4, generator=generator), "b": torch.randn(5, generator=generator)}
    moved = {name: tensor + size * torch.randn(tensor.shape, generator=generator) for name, tensor in reference.items()}
    before = distance(moved, reference)
    result = clipped(moved, reference, bound)
    after = distance(result, reference)
    assert after <= bound * (1 + 1e-9) and after == pytest.approx(min(before, bound), rel=1e-6)
    for name in reference:
        expected = (moved[name].double() - reference[name].double()) * (after / before)
        torch.testing.assert_close(result[name] - reference[name].double(), expected, rtol=1e-6, atol=1e-9 * (1 + before))


def test_an_update_that_moves_nothing_can_be_clipped() -> None:
    same = {"a": torch.ones(3), "scalar": torch.tensor(2.0)}
    assert torch.equal(clipped(same, same, 1.0)["a"], torch.ones(3, dtype=torch.float64))
    assert clipped({"scalar": torch.tensor(5.0)}, {"scalar": torch.tensor(2.0)}, 1.0)["scalar"].item() == pytest.approx(3.0)


def test_without_noise_and_with_a_wide_clip_it_is_the_plain_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = federation(tmp_path / "plain", None).run()
    without_noise(monkeypatch)
    private = federation(tmp_path / "private", replace(BUDGET, clip=1e6)).run()
    assert distance(plain, private) < 1e-5


def test_a_lost_site_costs_no_privacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise is the same whoever is missing."""
    asked = without_noise(monkeypatch)
    made = federation(tmp_path, min_sites=2)
    real = made.grid.get_node_ids
    monkeypatch.setattr(made.grid, "get_node_ids", lambda: list(real())[: 2 if len(made.records) == 1 else 3])
    made.run()
    assert [len(record.progress["sites"]) for record in made.records] == [3, 2, 3]
    z = noise_multiplier(BUDGET, SCHEDULE.rounds, len(SITES))
    assert asked == pytest.approx([z * BUDGET.clip / 3] * len(asked)) and asked
    spent = [record.progress["privacy"]["epsilon"] for record in made.records]
    assert 0 < spent[0] < spent[1] < spent[2] <= BUDGET.epsilon and spent[2] > 0.999 * BUDGET.epsilon


@settings(max_examples=40, deadline=None)
@given(sites=st.integers(2, 8), missing=st.integers(0, 4), seed=st.integers(0, 2**32 - 1), size=st.floats(1e-3, 1e3))
def test_one_site_moves_the_result_by_no_more_than_the_noise_is_made_for(sites: int, missing: int, seed: int, size: float) -> None:
    """Neighbours: its update is in the sum, or is not; how many others answer does not matter, nor what they send."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        asked = without_noise(patch)
        generator = torch.Generator().manual_seed(seed)
        held = {"a": torch.randn(4, 3, generator=generator), "b": torch.tensor(0.5)}
        updates = [
            {name: value + size * torch.randn(value.shape, generator=generator) for name, value in held.items()} for _ in range(sites)
        ]
        updates[0] = {name: held[name] - size * 10 * (updates[1][name] - held[name]) for name in held}  # against the others
        present = updates[: max(2, sites - missing)]

        def result(of: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
            private = PrivateRounds(Path(folder), replace(BUDGET, clip=1.0), rounds=3, sites=sites)
            aggregator = Aggregator(EQUAL.aggregation, 1, private)
            aggregator.configure(1, held, ConfigRecord(), DirectGrid([None]))
            for number, update in enumerate(of):
                aggregator.add(f"site_{number}", update, 5)
            return aggregator.result()

        apart = distance(result(present), result(present[1:]))
        z = noise_multiplier(replace(BUDGET, clip=1.0), 3, sites)
        assert apart <= asked[0] / z * (1 + 1e-5) + 1e-6 * size and asked[0] == pytest.approx(z / sites)


def test_sites_clip_what_they_send(tmp_path: Path) -> None:
    made = federation(tmp_path)
    start = {name: tensor.clone() for name, tensor in made.loop._downlink.held.items()}
    made.run()
    for reply in made.grid.received[:3]:
        sent = decode(from_record(reply.content.array_records[PAYLOAD]), start, made.adapted.manifest)
        assert distance(sent, start) == pytest.approx(BUDGET.clip, rel=1e-3)


def test_a_site_that_does_not_clip_is_clipped_by_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SiteWorker.train

    def train(self: SiteWorker, *arguments: Any, **named: Any) -> Any:
        encoded, result = real(self, *arguments, **named)
        far = {name: self._received[name] + 3 * (tensor - self._received[name]) for name, tensor in encoded.decoded.items()}
        return replace(encoded, payload=encode(far, self._received, "fp32", {}).payload), result

    monkeypatch.setattr(SiteWorker, "train", train)
    without_noise(monkeypatch)
    made = federation(tmp_path)
    start = {name: tensor.clone() for name, tensor in made.loop._downlink.held.items()}
    assert distance(made.run(), start) <= 3 * BUDGET.clip * (1 + 1e-6)  # three rounds
    assert not any(record.progress["refused"] for record in made.records)


def test_every_value_that_travels_gets_its_own_noise(tmp_path: Path) -> None:
    made = federation(tmp_path, replace(BUDGET, clip=1e-6))
    start = {name: tensor.clone() for name, tensor in made.loop._downlink.held.items()}
    moved = made.run()
    changed = torch.cat([(moved[name] - start[name]).ravel() for name in sorted(moved) if start[name].abs().max() < 1e-12])
    assert changed.numel() > 500  # LoRA's B, which begins at zero
    deviation = noise_multiplier(BUDGET, SCHEDULE.rounds, 3) * 1e-6 / 3 * math.sqrt(SCHEDULE.rounds)
    assert float(changed.std()) == pytest.approx(deviation, rel=0.1)


def test_what_was_spent_is_in_the_ledger_and_in_the_audit_trails(tmp_path: Path) -> None:
    made = federation(tmp_path)
    made.run()
    ledger = json.loads((tmp_path / LEDGER_FILE).read_text(encoding="utf-8"))
    assert ledger["spent"] == made.records[-1].progress["privacy"] and ledger["spent"]["releases"] == 3
    told = [line.epsilon for line in read_chain(made.setups[0].state_folder / AUDIT_FILE)[0]]
    spent = [record.progress["privacy"]["epsilon"] for record in made.records]
    assert told == pytest.approx([0.0, 0.0, spent[0], spent[0], spent[1], spent[1]])  # a message and its answer, each round


def test_an_interrupted_run_goes_on_with_its_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = federation(tmp_path)
    real = CheckpointSeries.save

    def save(self: CheckpointSeries, number: int, tensors: Any) -> None:
        real(self, number, tensors)
        if number == 2 and self is first.checkpoints:
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointSeries, "save", save)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = federation(tmp_path)
    assert second.aggregator._privacy is not None
    second.aggregator._privacy.require_ledger(2)  # as a run does that is continued
    second.run(rounds_done=2)
    assert second.records[-1].progress["privacy"]["releases"] == 3


def test_a_model_that_was_lost_before_anybody_had_it_spends_nothing(tmp_path: Path) -> None:
    federation(tmp_path).run_until(3)  # killed before its checkpoint
    second = federation(tmp_path)
    second.run(rounds_done=2)
    assert second.records[-1].progress["privacy"]["releases"] == 3


def test_a_round_that_would_be_released_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    federation(tmp_path).run()
    shutil.rmtree(tmp_path / "checkpoints" / "round_0003")  # the sites have had its model
    again = federation(tmp_path)
    with pytest.raises(FedsamError, match="the privacy budget is spent") as caught:
        again.run(rounds_done=2)
    assert "after 3 releases; 1 more exceed it" in str(caught.value)
    assert again.grid.sent == []  # no site was asked for its data


def private(folder: Path, budget: PrivacyBudget = BUDGET) -> PrivateRounds:
    return PrivateRounds(folder, budget, rounds=3, sites=3)


def test_a_lost_broken_or_foreign_ledger_is_refused(tmp_path: Path) -> None:
    private(tmp_path).require_ledger(0)
    with pytest.raises(FedsamError, match="the privacy ledger of this run lacks releases"):
        private(tmp_path).require_ledger(2)
    first = private(tmp_path)
    first.release({"a": torch.zeros(2, dtype=torch.float64)}, {"a": torch.zeros(2)}, 3)
    private(tmp_path).require_ledger(0)  # lost with the process
    first.keep()
    private(tmp_path).require_ledger(1)
    with pytest.raises(FedsamError, match="cannot be used"):
        private(tmp_path, replace(BUDGET, epsilon=9.0))
    for content in ("{}", '{"accountant": 1}', "[]", '{"accountant": {"schema_version": 1, "backend": "rdp"}}'):
        (tmp_path / LEDGER_FILE).write_text(content, encoding="utf-8")
        with pytest.raises(FedsamError, match="the privacy ledger of this run cannot be used"):
            private(tmp_path)
    (tmp_path / LEDGER_FILE).write_text("not JSON", encoding="utf-8")
    with pytest.raises(FedsamError, match="cannot be read as JSON"):
        private(tmp_path)


def test_a_checkpoint_whose_process_died_before_the_ledger_is_counted(tmp_path: Path) -> None:
    private(tmp_path).require_ledger(1)
    assert json.loads((tmp_path / LEDGER_FILE).read_text(encoding="utf-8"))["spent"]["releases"] == 1
    private(tmp_path).require_ledger(2)
    private(tmp_path).require_ledger(2)
    assert private(tmp_path).spent["releases"] == 2


def test_a_run_that_cannot_be_finished_within_its_budget_is_not_continued(tmp_path: Path) -> None:
    """Said at once, not after all rounds but the last."""
    first = private(tmp_path)
    first.release({"a": torch.zeros(2, dtype=torch.float64)}, {"a": torch.zeros(2)}, 3)
    first.keep()
    with pytest.raises(FedsamError, match="after 1 releases; 3 more exceed it"):
        private(tmp_path).require_ledger(0)  # the checkpoint of round 1 was lost


def test_it_says_which_extra_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flwr.serverapp

    def missing(*_arguments: object) -> None:
        raise ImportError("no dp_accounting")

    monkeypatch.setattr(flwr.serverapp, "RdpAccountant", missing)
    with pytest.raises(FedsamError, match=r"pip install 'fedsam-pipeline\[dp\]'"):
        private(tmp_path)
