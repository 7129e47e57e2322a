"""Rounds under each wire: both sides hold the same state, kills change nothing, joiners get the full state, damage is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.payload import unpack
from fedsam_pipeline.federation.codec.wires import WIRES
from fedsam_pipeline.flower.messages import CONFIG, PAYLOAD, from_record, to_record
from fedsam_pipeline.flower.replies import SiteFailed
from fedsam_pipeline.specs.manifest import Wire
from tests.flower.federations import Federation, assert_equal

LOSSY: tuple[Wire, ...] = ("fp16", "int8", "int4")


def state_of(federation: Federation, site: str, round_number: int, part: str) -> dict[str, torch.Tensor]:
    folder = next(setup.state_folder for setup in federation.setups if setup.site == site)
    state = CheckpointSeries(folder, "state_r").load(round_number)
    return {name.removeprefix(part): tensor for name, tensor in state.items() if name.startswith(part)}


@pytest.mark.parametrize("wire", WIRES)
def test_every_site_holds_what_the_server_thinks_it_holds(tmp_path: Path, wire: Wire) -> None:
    federation = Federation(tmp_path, wire=wire)
    tensors = federation.run()
    for site in ("site_a", "site_b", "site_c"):
        assert_equal(state_of(federation, site, 3, "held/"), federation.loop._downlink.held)
        assert bool(state_of(federation, site, 3, "residual/")) == (wire != "fp32")
    federation.loop.evaluate(tensors)
    if wire == "fp32":
        assert_equal(federation.loop._downlink.held, tensors)


@pytest.mark.parametrize("wire", LOSSY)
def test_a_lossy_run_stays_near_the_exact_one_in_fewer_bytes(tmp_path: Path, wire: Wire) -> None:
    exact, lossy = Federation(tmp_path / "exact"), Federation(tmp_path / "lossy", wire=wire)
    expected = exact.run()
    initial = {name: tensor.clone() for name, tensor in exact.adapted.trained_tensors().items()}
    found = lossy.run()
    moved = sum(float((expected[name] - initial[name]).square().sum()) for name in expected)
    apart = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    assert apart < 0.05 * moved
    for way in ("up", "down"):
        after = [federation.records[2].communication["sites"]["site_a"][way]["bytes_payload_after"] for federation in (exact, lossy)]
        assert after[1] < 0.75 * after[0]


@pytest.mark.parametrize("wire", LOSSY)
def test_a_lossy_run_that_was_cut_continues_bit_for_bit(tmp_path: Path, wire: Wire) -> None:
    whole = Federation(tmp_path / "whole", wire=wire)
    expected = whole.run()
    scores = whole.loop.evaluate(expected).shared
    first = Federation(tmp_path / "cut", wire=wire)
    first.run_until(3)
    second = Federation(tmp_path / "cut", wire=wire)
    found = second.run(rounds_done=2)
    assert_equal(found, expected)
    third = Federation(tmp_path / "cut", wire=wire)  # killed once more, before the final scores
    found = third.run(rounds_done=3)
    again = third.loop.evaluate(found).shared
    assert_equal(third.loop._downlink.held, whole.loop._downlink.held)
    assert {site: score.dice for site, score in again.items()} == {site: score.dice for site, score in scores.items()}


@pytest.mark.parametrize("wire", WIRES)
def test_a_joiner_gets_the_full_state_and_the_others_do_not(tmp_path: Path, wire: Wire) -> None:
    federation = Federation(tmp_path, wire=wire)
    federation.run_until(3)
    shutil.rmtree(tmp_path / "sites" / "site_b")
    continued = Federation(tmp_path, wire=wire)
    continued.run(rounds_done=2)  # what a site holds in round 1 it builds itself: a joiner in round 2 needs no full state
    assert_equal(state_of(continued, "site_b", 3, "held/"), state_of(continued, "site_a", 3, "held/"))
    full = [
        message.metadata.dst_node_id
        for message in continued.grid.sent
        if unpack(from_record(message.content.array_records[PAYLOAD]), continued.adapted.manifest)[0].reference is None
    ]
    assert full == [2]
    down = {site: ways["down"]["bytes_payload_after"] for site, ways in continued.records[0].communication["sites"].items()}
    assert down["site_b"] > down["site_a"] == down["site_c"]


def test_round_one_sends_no_weights(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    down = federation.records[0].communication["sites"]["site_a"]["down"]
    assert down["bytes_payload_after"] < 0.05 * down["bytes_payload_before"]


def test_a_tampered_update_is_refused_by_name_of_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, wire="int8")
    pull = federation.grid.pull_messages

    def tampering(ids: set[str]) -> list[Message]:
        replies = list(pull(ids))
        reply = next(r for r in replies if r.content.config_records[CONFIG]["site"] == "site_b")
        payload = from_record(reply.content.array_records[PAYLOAD])
        reply.content[PAYLOAD] = to_record(payload[:-20] + bytes([payload[-20] ^ 1]) + payload[-19:])
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", tampering)
    federation.run()
    assert [list(record.progress["refused"]) for record in federation.records] == 3 * [["site_b"]]


def test_a_tampered_state_is_refused_by_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path)
    push = federation.grid.push_messages

    def tampering(messages: list[Message]) -> object:
        for message in messages:
            payload = from_record(message.content.array_records[PAYLOAD])
            message.content[PAYLOAD] = to_record(payload[:-1])
        return push(messages)

    monkeypatch.setattr(federation.grid, "push_messages", tampering)
    with pytest.raises(SiteFailed, match="reports update_refused"):
        federation.run()


def test_a_wire_that_a_site_does_not_know_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    object.__setattr__(federation.loop._plan, "wire", "int3")
    with pytest.raises(SiteFailed, match="reports agreement_broken"):
        federation.run()
