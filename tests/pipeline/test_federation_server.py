"""A real federation without Flower's processes: the two apps, a folder a hospital, messages between them."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.encrypted_sums import make_key, write_key
from fedsam_pipeline.flower import preparation
from fedsam_pipeline.pipeline.federation_server import FederationRequest, serve
from fedsam_pipeline.pipeline.site_node import client_app
from fedsam_pipeline.pipeline.train_request import TrainRequest
from fedsam_pipeline.specs.recipe import load_recipe
from tests.flower.grids import DirectGrid, stamped_id
from tests.pipeline.real_federations import NAME, make_hospitals


class HospitalGrid(DirectGrid):
    """Every node answers with its own environment and configuration."""

    def __init__(self, hospitals: Mapping[str, Mapping[str, str]], **configuration: int | str) -> None:
        super().__init__(hospitals)
        self._hospitals, self._configuration = list(hospitals.items()), configuration

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=number, name=site) for number, (site, _) in enumerate(self._hospitals, start=1)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)
        ids = [stamped_id(message) for message in asked]
        self._replies = [reply for reply in self._replies if reply.metadata.reply_to_message_id not in ids]
        server = dict(os.environ)
        for message in asked:
            node = message.metadata.dst_node_id
            site, variables = self._hospitals[node - 1]
            os.environ.update(variables)
            context = Context(run_id=1, node_id=node, node_config={"site": site, **self._configuration}, state=RecordDict(), run_config={})
            stamped = Message(message.content, dst_node_id=node, message_type=message.metadata.message_type)
            stamped.metadata.__dict__["_message_id"] = f"m{node}"
            reply = client_app(stamped, context)
            self.sent.append(stamped)
            self.received.append(reply)
            self._replies.append(reply)
        os.environ.clear()
        os.environ.update(server)
        return ids


def request(sites: Iterable[str], **flags: object) -> FederationRequest:
    training = TrainRequest(rounds=2, local_steps=1, val_every=1, device="cpu", **flags)  # type: ignore[arg-type]
    return FederationRequest(NAME, tuple(sites), training, load_recipe("default").to_dict(), "tiny_random")


def test_a_federation_from_the_raw_data_to_the_model(users_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "POLL_SECONDS", 0.2)
    hospitals = make_hospitals(users_folder / "hospitals")
    state = serve(HospitalGrid(hospitals, privacy_floor=1, device="cpu"), request(hospitals))
    assert state["status"] == "done" and state["sites"] == sorted(hospitals)
    fold = Path(f"fedsam_data/results/{NAME}/default__plans__main/federated__fedavg-int4__seed0/fold_0")
    assert (fold / "adapter.safetensors").is_file()
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert summary["dice"] is not None
    assert not list(Path("fedsam_data").rglob("*.b2nd")) and not list(Path("fedsam_data").rglob("*.nii.gz"))


def test_a_federation_that_encrypts(users_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "POLL_SECONDS", 0.2)
    hospitals = make_hospitals(users_folder / "hospitals")
    key = users_folder / "shared" / "encryption.key"
    write_key(key, make_key())
    grid = HospitalGrid(hospitals, privacy_floor=1, device="cpu", encryption_key=str(key))
    state = serve(grid, request(hospitals, encrypt=True, wire="fp32"))
    assert state["status"] == "done" and state["encrypt"] is True
    assert not list(Path("fedsam_data").rglob("encryption.key"))
    updates = [message for message in grid.received if message.metadata.message_type == "train.round"]
    assert len(updates) == 6 and all(set(message.content.array_records) == {"encrypted"} for message in updates)


def test_a_hospital_with_a_key_does_not_train_in_plain(users_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "POLL_SECONDS", 0.2)
    hospitals = make_hospitals(users_folder / "hospitals")
    grid = HospitalGrid(hospitals, privacy_floor=1, device="cpu", encryption_key=str(users_folder / "encryption.key"))
    with pytest.raises(FedsamError, match=r"encryption_required[\s\S]*train with --encrypt"):
        serve(grid, request(hospitals))
    assert all(not message.content.array_records for message in grid.received)


class LateGrid(HospitalGrid):
    """One hospital is not there until the first round is over, and gone in the last one."""

    def get_nodes(self) -> list[NodeInfo]:
        trained = sum(message.metadata.message_type == "train.round" for message in self.sent)
        there = super().get_nodes()
        return there if 2 <= trained < 5 else [node for node in there if node.name != "site_c"]


def test_a_site_that_comes_late_takes_part_and_one_that_leaves_does_not_end_the_run(
    users_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preparation, "POLL_SECONDS", 0.2)
    hospitals = make_hospitals(users_folder / "hospitals")
    asked = request(hospitals, round_timeout=2.0, fold="all")
    asked = replace(asked, training=replace(asked.training, rounds=3))
    with caplog.at_level("INFO", logger="fedsam_pipeline"):
        state = serve(LateGrid(hospitals, privacy_floor=1, device="cpu"), asked)
    assert state["status"] == "done"
    fold = Path(f"fedsam_data/results/{NAME}/default__plans__main/federated__fedavg-int4__seed0/fold_all")
    records = [json.loads(line) for line in (fold / "progress.jsonl").read_text().splitlines()]
    assert [list(record["missing"]) for record in records] == [["site_c"], [], ["site_c"], ["site_c"]]
    assert "planning from site_a, site_b" in caplog.text and "query.plan: it goes on without site_c: not ready" in caplog.text
    assert "site_c takes part" in caplog.text and "site_c joins in round 2" in caplog.text


def test_more_sites_cannot_be_needed_than_there_are(users_folder: Path) -> None:
    hospitals = make_hospitals(users_folder / "hospitals")
    with pytest.raises(FedsamError, match="--min_sites asks for more sites than there are"):
        serve(HospitalGrid(hospitals, privacy_floor=1, device="cpu"), request(hospitals, min_sites=4))
