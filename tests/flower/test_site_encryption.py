"""Encrypted sums at a site: what it refuses to send and to decrypt, and that it sends nothing twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedsam_pipeline.federation.encrypted_sums import EncryptedSum
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.flower import site_encryption
from fedsam_pipeline.flower.messages import (
    CONFIG,
    ENCRYPTED,
    ENCRYPTED_SITES,
    PARTS,
    from_record,
    to_record,
)
from fedsam_pipeline.flower.replies import SiteFailed
from fedsam_pipeline.flower.site_encryption import encrypted_update
from fedsam_pipeline.flower.site_worker import SiteWorker
from fedsam_pipeline.pipeline.site_folders import clear_site
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from fedsam_pipeline.training.local_trainer import RunSchedule
from tests.flower.federations import SCHEDULE, Federation, start

TWO = {"site_a": 3, "site_b": 2}
ROUND = ConfigRecord({"run_id": "run", "round": 1})


def test_a_site_without_a_key(tmp_path: Path) -> None:
    federation = Federation(tmp_path, TWO, encrypted="size")
    federation.grid._setups[1] = replace(federation.setups[1], encryption_key=None)
    with pytest.raises(SiteFailed, match="site_b reports encryption_key_missing") as caught:
        federation.run()
    assert caught.value.code == "encryption_key_missing"


def test_a_site_with_a_key_sends_nothing_in_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, TWO)
    federation.grid._setups[0] = replace(federation.setups[0], encryption_key=tmp_path / "encryption.key")
    monkeypatch.setattr(SiteWorker, "train", lambda *_: pytest.fail("it trained"))
    with pytest.raises(SiteFailed, match=r"site_[ab] reports"):
        federation.run()
    replies = {str(m.content.config_records[CONFIG]["site"]): m.content for m in federation.grid.received}
    assert replies["site_a"].config_records[CONFIG]["failure"] == "encryption_required"
    assert not replies["site_a"].array_records


def test_a_key_that_is_damaged(tmp_path: Path) -> None:
    federation = Federation(tmp_path, TWO, encrypted="size")
    damaged = tmp_path / "damaged.key"
    damaged.write_bytes(b"no key")
    federation.grid._setups[1] = replace(federation.setups[1], encryption_key=damaged)
    with pytest.raises(SiteFailed, match="site_b reports bad_input"):
        federation.run()


@pytest.mark.parametrize("number", [1, 0, -1, True, "3", 2.0])
def test_a_sum_that_is_none(tmp_path: Path, number: Any) -> None:
    federation = Federation(tmp_path, TWO, encrypted="size")
    (setup, _) = federation.setups
    with pytest.raises(site_encryption.SumRefused, match=ENCRYPTED_SITES):
        site_encryption.encrypting_sites(ConfigRecord({ENCRYPTED_SITES: number}), setup)
    with pytest.raises(site_encryption.SumRefused, match="parts"):
        site_encryption.decrypted_sum(RecordDict(), ConfigRecord({PARTS: number}), setup)


def test_a_question_without_a_sum_or_at_a_site_without_a_key(tmp_path: Path) -> None:
    federation = Federation(tmp_path, TWO, encrypted="size")
    with pytest.raises(UpdateRefused, match="without encrypted"):
        site_encryption.decrypted_sum(RecordDict(), ConfigRecord({PARTS: 2}), federation.setups[0])
    with pytest.raises(site_encryption.KeyMissing):
        site_encryption.decrypted_sum(RecordDict(), ConfigRecord({PARTS: 2}), replace(federation.setups[0], encryption_key=None))


def test_a_site_does_not_weigh_by_validation(tmp_path: Path) -> None:
    recipe = load_recipe("flap_sam").to_dict()
    by_validation = Recipe.from_dict(recipe | {"aggregation": recipe["aggregation"] | {"weighting": "validation"}})
    federation = Federation(tmp_path, TWO, recipe=by_validation, encrypted="size")
    tensors = start(federation.adapted)
    with pytest.raises(UpdateRefused, match="weighting by validation"):
        encrypted_update(tensors, tensors, ROUND, federation.setups[0], 2)


def test_a_single_update_does_not_pass_for_a_sum(tmp_path: Path) -> None:
    federation = Federation(tmp_path, TWO, encrypted="size")
    setup, zeros = federation.setups[0], {"a": torch.zeros(3)}
    part, _ = encrypted_update({"a": torch.ones(3)}, zeros, ROUND, setup, 2)
    with pytest.raises(site_encryption.SumRefused, match="no sum of so many parts"):
        site_encryption.decrypted_sum(RecordDict({ENCRYPTED: part}), ConfigRecord({**ROUND, PARTS: 2}), setup)


def test_a_site_decrypts_sums_of_its_own_last_round_alone(tmp_path: Path) -> None:
    federation = Federation(tmp_path, TWO, encrypted="size")
    first, second = federation.setups
    zeros = {"a": torch.zeros(3)}
    parts = [encrypted_update({"a": torch.ones(3)}, zeros, ROUND, setup, 2)[0] for setup in federation.setups]
    both = EncryptedSum(3)
    for part in parts:
        both.add(from_record(part))
    content = RecordDict({ENCRYPTED: to_record(both.payload())})
    site_encryption.decrypted_sum(content, ConfigRecord({**ROUND, PARTS: 2}), first)
    for other in ({"round": 2}, {"run_id": "another"}):
        with pytest.raises(site_encryption.SumRefused, match="no part in that sum"):
            site_encryption.decrypted_sum(content, ConfigRecord({**ROUND, **other, PARTS: 2}), first)
    site_encryption.decrypted_sum(content, ConfigRecord({**ROUND, PARTS: 2}), first)  # asked again
    fewer = EncryptedSum(3)
    for _ in range(2):
        fewer.add(from_record(parts[0]))
    with pytest.raises(site_encryption.SumRefused, match="another sum of this round"):
        site_encryption.decrypted_sum(RecordDict({ENCRYPTED: to_record(fewer.payload())}), ConfigRecord({**ROUND, PARTS: 2}), first)
    clear_site(second.state_folder)
    with pytest.raises(site_encryption.SumRefused, match="no part in that sum"):
        site_encryption.decrypted_sum(content, ConfigRecord({**ROUND, PARTS: 2}), second)
    more = EncryptedSum(4)
    for setup in federation.setups:
        more.add(from_record(encrypted_update({"a": torch.ones(4)}, {"a": torch.zeros(4)}, ROUND, setup, 2)[0]))
    encrypted_update({"a": torch.ones(3)}, zeros, ROUND, first, 2)
    with pytest.raises(site_encryption.SumRefused, match="no sum of so many parts"):
        site_encryption.decrypted_sum(RecordDict({ENCRYPTED: to_record(more.payload())}), ConfigRecord({**ROUND, PARTS: 2}), first)


def test_a_site_trains_an_encrypted_round_on_slabs_of_its_own_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server cannot have it send the same digits twice, and subtract."""
    seeds: list[int] = []
    real = SiteWorker.train

    def train(self: SiteWorker, schedule: RunSchedule, *arguments: Any, **named: Any) -> Any:
        seeds.append(schedule.seed)
        return real(self, schedule, *arguments, **named)

    monkeypatch.setattr(SiteWorker, "train", train)
    Federation(tmp_path / "encrypted", TWO, encrypted="size").run()
    assert len(set(seeds)) == len(seeds) == 6
    seeds.clear()
    Federation(tmp_path / "plain", TWO).run()
    assert set(seeds) == {SCHEDULE.seed}
