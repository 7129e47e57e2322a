"""Messages out and answers in: how many are out at once, in which order, and what is left of an answer that was taken in."""

import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict
from ray import cloudpickle

from fedsam_pipeline.federation.streaming import WeightedMean
from fedsam_pipeline.flower.client_app import make_client_app
from fedsam_pipeline.flower.exchange import answers
from fedsam_pipeline.flower.worker_model import worker_model
from tests.flower.federations import Federation, assert_equal, setups
from tests.flower.grids import DirectGrid

MANY = {f"site_{number:02d}": 1 for number in range(6)}


class ForgetfulGrid(DirectGrid):
    """Keeps no message once it was pulled, as Flower's does. Counts the answers that are in memory when messages are pushed and pulled."""

    def __init__(self, setups: Iterable[Any]) -> None:
        super().__init__(setups)
        self._answers: list[weakref.ref[Message]] = []
        self.alive: list[int] = []
        self.pushed: list[list[int]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.pushed.append([message.metadata.dst_node_id for message in messages])
        ids = super().push_messages(messages)
        self._answers += [weakref.ref(reply) for reply in self.received]
        self.received.clear()
        self.sent.clear()
        self._count()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        pulled = super().pull_messages(message_ids)
        self._replies = [reply for reply in self._replies if all(reply is not other for other in pulled)]
        self._count()
        return pulled

    def _count(self) -> None:
        self.alive.append(sum(reference() is not None for reference in self._answers))


def windowed(folder: Path, window: int | None) -> Federation:
    """Six sites, asked ``window`` at a time."""
    federation = Federation(folder, MANY)
    federation.grid = ForgetfulGrid(federation.setups)
    federation.loop._grid = federation.grid
    federation.loop._plan = replace(federation.loop._plan, window=window)
    return federation


def test_no_more_answers_are_in_memory_than_sites_are_asked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[weakref.ref[torch.Tensor]] = []
    others: list[int] = []
    add = WeightedMean.add

    def counting(mean: WeightedMean, update: dict[str, torch.Tensor], weight: float) -> None:
        others.append(len({id(tensor) for reference in updates if (tensor := reference()) is not None}))
        updates.extend(weakref.ref(tensor) for tensor in update.values())
        add(mean, update, weight)

    monkeypatch.setattr(WeightedMean, "add", counting)
    federation = windowed(tmp_path / "few", 3)
    tensors = federation.run()
    assert isinstance(federation.grid, ForgetfulGrid)
    assert max(federation.grid.alive) == 3
    assert max(map(len, federation.grid.pushed)) == 3
    assert others == [0] * 18  # of six sites in three rounds: each update is gone when the next is added
    assert_equal(tensors, windowed(tmp_path / "all", None).run())  # and in what order they come does not show


def test_sites_that_took_longest_are_asked_first(tmp_path: Path) -> None:
    federation = windowed(tmp_path, 1)
    federation.loop._took = {1: 3.0, 2: 6.0, 3: 1.0, 4: 2.0, 5: 5.0, 6: 4.0}
    federation.loop._round(federation_start(federation), 1)
    assert isinstance(federation.grid, ForgetfulGrid)
    asked = [node for nodes in federation.grid.pushed for node in nodes]
    assert asked == [2, 5, 6, 1, 4, 3]


def federation_start(federation: Federation) -> dict[str, torch.Tensor]:
    """The tensors that travel, at round 0."""
    trained = federation.adapted.trained_tensors()
    return {entry.name: trained[entry.name].clone() for entry in federation.adapted.manifest.federated}


def test_no_weights_go_to_a_worker_with_a_message(tmp_path: Path) -> None:
    sites = setups(tmp_path)
    adapted, _ = worker_model(sites[0].model, sites[0].device, compiled=sites[0].compiled)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in adapted.model.parameters())
    app = make_client_app(lambda context, _content: sites[int(context.node_config["partition-id"])])
    assert len(cloudpickle.dumps(app)) < weights / 4  # type: ignore[no-untyped-call]


def test_answers_end_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path)
    monkeypatch.setattr(federation.grid, "push_messages", lambda messages: [f"m{m.metadata.dst_node_id}" for m in messages])
    message = Message(RecordDict(), dst_node_id=1, message_type="train.round")
    assert list(answers(federation.grid, [message], 0.1, threading.Event(), window=1)) == []
    assert list(answers(federation.grid, [], None, threading.Event(), window=1)) == []


def asks(nodes: Iterable[int]) -> list[Message]:
    return [Message(RecordDict(), dst_node_id=node, message_type="train.round") for node in nodes]


def test_a_node_that_never_answers_gives_its_place_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Federation(tmp_path).grid
    pull = grid.pull_messages
    monkeypatch.setattr(grid, "pull_messages", lambda ids: pull(set(ids) - {"m1"}))
    found = [node for node, _ in answers(grid, asks([1, 2, 3]), 0.2, threading.Event(), window=1)]
    assert found == [2, 3]
    assert [message.metadata.dst_node_id for message in grid.sent] == [1, 2, 3]


def test_an_answer_that_came_while_the_caller_was_at_work_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Federation(tmp_path).grid
    pull = grid.pull_messages
    monkeypatch.setattr(grid, "pull_messages", lambda ids: list(pull(ids))[:1])
    found = []
    for node, _ in answers(grid, asks([1, 2]), 0.1, threading.Event()):
        found.append(node)
        time.sleep(0.15)
    assert sorted(found) == [1, 2]
