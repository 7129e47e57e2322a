"""Rounds of encrypted sums: the same model as in plain, nothing of a single site in any message, and who refuses what."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message

from fedsam_pipeline.federation.encrypted_sums import SiteCipher, make_key, write_key
from fedsam_pipeline.flower import client_app, worker_model
from fedsam_pipeline.flower.encrypted_round import EncryptedRound
from fedsam_pipeline.flower.messages import (
    CONFIG,
    DECRYPTED,
    ENCRYPTED,
    PARTS,
    PAYLOAD,
    QUERY_DECRYPTED_SUM,
    TRAIN_ROUND,
    from_record,
    to_record,
)
from fedsam_pipeline.flower.replies import SiteFailed
from fedsam_pipeline.flower.site_encryption import encrypted_update
from fedsam_pipeline.specs.recipe import Recipe, Weighting, load_recipe
from fedsam_pipeline.training import local_trainer
from tests.flower.federations import SCHEDULE, Federation, assert_equal, start

TWO = {"site_a": 3, "site_b": 2}
ROUND = ConfigRecord({"run_id": "run", "round": 1})


@pytest.fixture(autouse=True)
def same_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites draw the seeds of encrypted rounds themselves; here that of plain ones."""
    monkeypatch.setattr("secrets.randbelow", lambda _most: SCHEDULE.seed)


def with_aggregation(**values: object) -> Recipe:
    recipe = load_recipe("flap_sam")
    return Recipe.from_dict(recipe.to_dict() | {"aggregation": recipe.to_dict()["aggregation"] | values})


def of_kind(messages: list[Message], kind: str) -> list[Message]:
    return [message for message in messages if message.metadata.message_type == kind]


def sums_asked(federation: Federation) -> list[Message]:
    return of_kind(federation.grid.sent, QUERY_DECRYPTED_SUM)


@pytest.mark.parametrize(
    ("weighting", "values"),
    [
        ("size", {}),
        ("equal", {"weighting": "equal"}),
        ("size", {"strategy": "fedavgm", "options": {"server_momentum": 0.5}}),
        ("size", {"lora_method": "rolora"}),
    ],
)
def test_the_model_is_the_one_of_plain_updates(tmp_path: Path, weighting: Weighting, values: dict[str, object]) -> None:
    recipe = with_aggregation(**values)
    plain = Federation(tmp_path / "plain", recipe=recipe)
    one, _ = plain.loop._round(start(plain.adapted), 1)
    encrypted = Federation(tmp_path / "encrypted", recipe=recipe, encrypted=weighting)
    other, _ = encrypted.loop._round(start(encrypted.adapted), 1)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-6, atol=2e-8, msg=name)
    moved = [name for name, tensor in start(plain.adapted).items() if not torch.equal(tensor, one[name])]
    assert moved


def test_three_rounds_end_where_plain_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a float32's last digits and a few steps of 2^-26, which training carries on, in float32: bfloat16 rounds some of them up."""
    for module in (local_trainer, worker_model):
        monkeypatch.setattr(module, "autocast_dtype", lambda _device: None)
    plain = Federation(tmp_path / "plain").run()
    encrypted = Federation(tmp_path / "encrypted", encrypted="size").run()
    for name, tensor in plain.items():
        torch.testing.assert_close(encrypted[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


def test_an_interrupted_run_that_continues_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = Federation(tmp_path / "whole", TWO, encrypted="size").run()
    first = Federation(tmp_path / "cut", TWO, encrypted="size")
    first.run_until(3)
    assert_equal(Federation(tmp_path / "cut", TWO, encrypted="size").run(rounds_done=2), whole)


def test_no_message_holds_a_sites_tensors_nor_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[torch.Tensor] = []
    real = encrypted_update

    def kept(tensors: dict[str, torch.Tensor], *others: Any) -> Any:
        trained.extend(tensors.values())
        return real(tensors, *others)

    monkeypatch.setattr(client_app, "encrypted_update", kept)
    federation = Federation(tmp_path, TWO, encrypted="size")
    federation.loop._round(start(federation.adapted), 1)
    key = federation.setups[0].encryption_key
    assert key is not None
    secret = key.read_bytes()
    updates = of_kind(federation.grid.received, TRAIN_ROUND)
    assert len(updates) == 2
    plain = [tensor.numpy().tobytes()[at : at + 8] for tensor in trained for at in range(0, 4 * tensor.numel() - 7, 8)]
    plain = [piece for piece in plain if any(piece)]
    assert len(plain) > 1000
    for message in updates:
        assert set(message.content.array_records) == {ENCRYPTED}
        payload = from_record(message.content.array_records[ENCRYPTED])
        assert not any(piece in payload for piece in plain)
    for message in federation.grid.sent + federation.grid.received:
        whole = b"".join(array.data for record in message.content.array_records.values() for array in record.values())
        assert secret[200:264] not in whole and str(key).encode() not in whole
        assert str(key) not in str(dict(message.content.config_records[CONFIG]))
    sums = sums_asked(federation)
    assert len(sums) == 1 and sums[0].content.config_records[CONFIG][PARTS] == 2


def test_the_sites_take_turns(tmp_path: Path) -> None:
    federation = Federation(tmp_path, encrypted="size")
    federation.run()
    assert [message.metadata.dst_node_id for message in sums_asked(federation)] == [2, 3, 1]
    entries = [record.communication["encryption"] for record in federation.records]
    assert [entry["site"] for entry in entries] == ["site_b", "site_c", "site_a"]
    assert all(entry["parts"] == 3 and entry["add_seconds"] > 0 and entry["decrypt_seconds"] > 0 for entry in entries)


def test_bytes_and_seconds_are_told(tmp_path: Path) -> None:
    federation = Federation(tmp_path, TWO, encrypted="size")
    _, record = federation.loop._round(start(federation.adapted), 1)
    values = federation.adapted.manifest.federated_parameters
    ciphertexts = values // 4096 + 1
    up = {site: entry["up"] for site, entry in record.communication["sites"].items()}
    for way in up.values():
        assert way["bytes_payload_before"] == 4 * values
        assert way["bytes_payload_after"] == pytest.approx(ciphertexts * 16 * 4096, rel=0.01)
        assert way["codec_seconds"] > 0
    asked = record.communication["encryption"]
    assert asked["bytes_sum"] == up["site_a"]["bytes_payload_after"]
    by_message = {str(m.content.config_records[CONFIG]["site"]): m for m in of_kind(federation.grid.received, TRAIN_ROUND)}
    assert sorted(by_message) == sorted(TWO)
    assert record.progress["bytes_up"] == sum(way["bytes_message"] for way in up.values())
    assert up["site_b"]["bytes_message"] - up["site_a"]["bytes_message"] == pytest.approx(asked["bytes_message_up"], abs=20)
    assert asked["bytes_message_up"] > 4 * values and asked["bytes_message_down"] > asked["bytes_sum"]


# answers that the server refuses


Edit = Callable[[Message], None]


def edit_answers(federation: Federation, kind: str, edit: Edit, nodes: tuple[int, ...] = (1, 2, 3)) -> None:
    """Changes the answers of these nodes on their way, and their trail with them."""
    real = federation.grid._app

    def app(message: Message, context: Context) -> Message:
        reply = real(message, context)
        if message.metadata.message_type == kind and context.node_id in nodes:
            edit(reply)
        return reply

    federation.grid._app = app  # type: ignore[assignment]


def put_plain(reply: Message) -> None:
    del reply.content.array_records[ENCRYPTED]
    reply.content.array_records[PAYLOAD] = to_record(b"")


def put_noise(reply: Message) -> None:
    reply.content.array_records[ENCRYPTED] = to_record(b"FSE1" + bytes(100))


@pytest.mark.parametrize(("edit", "says"), [(put_plain, "comes without encrypted"), (put_noise, "no ciphertext|ciphertexts for")])
def test_an_update_that_is_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Edit, says: str) -> None:
    monkeypatch.setattr("fedsam_pipeline.flower.round_loop.trail_fault", lambda *_: None)
    federation = Federation(tmp_path, encrypted="size")
    edit_answers(federation, TRAIN_ROUND, edit, nodes=(3,))
    _, record = federation.loop._round(start(federation.adapted), 1)
    (reason,) = record.progress["refused"].values()
    assert any(word in reason for word in says.split("|"))
    assert record.communication["encryption"]["parts"] == 2
    assert sums_asked(federation)[0].content.config_records[CONFIG][PARTS] == 2


def test_the_sum_of_one_is_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsam_pipeline.flower.round_loop.trail_fault", lambda *_: None)
    federation = Federation(tmp_path, TWO, encrypted="size")
    edit_answers(federation, TRAIN_ROUND, put_noise, nodes=(2,))
    with pytest.raises(SiteFailed, match="an encrypted sum needs 2"):
        federation.run()
    assert not sums_asked(federation)


def test_another_site_decrypts_where_one_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = Federation(tmp_path / "whole", encrypted="size")
    expected, _ = plain.loop._round(start(plain.adapted), 1)
    federation = Federation(tmp_path / "one", encrypted="size")
    real = federation.grid._app

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == QUERY_DECRYPTED_SUM and context.node_id == 2:
            message.content.config_records[CONFIG]["plan_sha256"] = "0" * 64
        return real(message, context)

    federation.grid._app = app  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        found, record = federation.loop._round(start(federation.adapted), 1)
    assert_equal(found, expected)
    assert record.communication["encryption"]["site"] == "site_c"
    assert "site_b did not decrypt the sum: site_b reports agreement_broken" in caplog.text


def test_a_site_that_does_not_decrypt_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, encrypted="size", min_sites=2)
    real = federation.grid.pull_messages

    def pull(message_ids: Iterable[str]) -> list[Message]:
        return [m for m in real(message_ids) if m.metadata.message_type != QUERY_DECRYPTED_SUM or m.metadata.src_node_id != 2]

    monkeypatch.setattr(federation.grid, "pull_messages", pull)
    _, record = federation.loop._round(start(federation.adapted), 1)
    assert record.communication["encryption"]["site"] == "site_c"
    assert [message.metadata.dst_node_id for message in sums_asked(federation)] == [2, 3]


def test_a_site_that_is_away_is_not_in_the_sum(tmp_path: Path) -> None:
    federation = Federation(tmp_path, encrypted="size", min_sites=2)
    federation.grid._setups[2] = replace(federation.setups[2], encryption_key=None)
    _, record = federation.loop._round(start(federation.adapted), 1)
    assert list(record.progress["missing"]) == ["site_c"] and record.communication["encryption"]["parts"] == 2


def told(values: np.ndarray) -> Edit:
    def edit(reply: Message) -> None:
        reply.content.array_records[DECRYPTED] = ArrayRecord({DECRYPTED: Array(values)})

    return edit


def test_no_usable_answer_to_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsam_pipeline.flower.encrypted_round.trail_fault", lambda *_: None)
    count = Federation(tmp_path / "count", TWO).adapted.manifest.federated_parameters
    short, wide = np.zeros(count - 1, np.float32), np.zeros(count, np.float64)
    broken = np.full(count, np.nan, np.float32)

    def without(reply: Message) -> None:
        del reply.content.array_records[DECRYPTED]

    def doubled(reply: Message) -> None:
        reply.content.array_records[DECRYPTED]["more"] = Array(short)

    def another(reply: Message) -> None:
        reply.content.config_records[CONFIG]["site"] = "site_c"

    federation = Federation(tmp_path / "run", TWO, encrypted="size")
    federation.loop._round(start(federation.adapted), 1)
    rounds = federation.loop._encrypted
    assert isinstance(rounds, EncryptedRound)
    real = federation.grid._app
    for edit, says in (
        (told(short), "expected"),
        (told(wide), "expected float32"),
        (told(broken), "NaN or infinite"),
        (without, "without decrypted"),
        (doubled, "a record of 2 arrays"),
        (another, "another answers for it"),
    ):
        edit_answers(federation, QUERY_DECRYPTED_SUM, edit)
        with pytest.raises(SiteFailed, match=f"no site decrypted the sum; site_b: [^;]*{says}[^;]*; site_a: "):
            rounds.finish(1, start(federation.adapted), federation.aggregator)
        federation.grid._app = real


def test_an_answer_whose_trail_is_another(tmp_path: Path) -> None:
    federation = Federation(tmp_path, TWO, encrypted="size")

    def edit(reply: Message) -> None:
        del reply.content.config_records[CONFIG]["audit_head"]

    edit_answers(federation, QUERY_DECRYPTED_SUM, edit)
    with pytest.raises(SiteFailed, match=r"no site decrypted the sum; site_b: it comes without the head"):
        federation.run()


def test_a_frozen_factor_that_moved_shows_in_the_sum(tmp_path: Path) -> None:
    """RoLoRA's check of single updates becomes one of their sum: whose it was is not known."""
    federation = Federation(tmp_path, TWO, recipe=with_aggregation(lora_method="rolora"), encrypted="size")
    federation.loop._round(start(federation.adapted), 1)
    rounds = federation.loop._encrypted
    assert rounds is not None
    moved = {name: tensor + 0.1 for name, tensor in start(federation.adapted).items()}
    cipher = SiteCipher(federation.setups[0].encryption_key.read_bytes())  # type: ignore[union-attr]
    rounds._sum.add(cipher.encrypt(moved, start(federation.adapted), 1.0, 2))
    with pytest.raises(SiteFailed, match=r"the sum of 3 updates was refused: .*changed, though this round freezes it"):
        rounds.finish(1, start(federation.adapted), federation.aggregator)


def test_sites_that_do_not_hold_the_same_key(tmp_path: Path) -> None:
    federation = Federation(tmp_path, TWO, encrypted="size")
    other = tmp_path / "other.key"
    write_key(other, make_key())
    federation.grid._setups[0] = replace(federation.setups[0], encryption_key=other)
    with pytest.raises(SiteFailed, match=r"no site decrypted the sum; site_b: .* sum_refused.*; site_a: .* sum_refused") as caught:
        federation.run()
    assert caught.value.code == "sum_refused"
