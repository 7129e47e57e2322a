"""Checkpoints: the last two are kept, damage is noticed, an interrupted write leaves nothing."""

from pathlib import Path

import pytest
import torch

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation import checkpoints
from fedsam_pipeline.federation.checkpoints import CheckpointSeries


def test_the_last_two_are_kept_and_come_back_equal(tmp_path: Path) -> None:
    series = CheckpointSeries(tmp_path / "checkpoints", "round_")
    tensors = {"b": torch.randn(2, 3), "a": torch.arange(4.0)}
    for number in range(1, 5):
        series.save(number, {name: tensor + number for name, tensor in tensors.items()})
    assert series.rounds() == [3, 4]
    loaded = series.load(4)
    assert all(torch.equal(loaded[name], tensors[name] + 4) for name in tensors)
    assert sorted(path.name for path in series.folder.iterdir()) == ["round_0003", "round_0004"]


def test_a_round_may_be_written_again(tmp_path: Path) -> None:
    series = CheckpointSeries(tmp_path, "state_r")
    series.save(1, {"a": torch.zeros(1)})
    series.save(1, {"a": torch.ones(1)})
    assert series.load(1)["a"].item() == 1


def test_an_empty_state_is_a_state(tmp_path: Path) -> None:
    series = CheckpointSeries(tmp_path, "state_r")
    series.save(1, {})
    assert series.load(1) == {}


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    series = CheckpointSeries(tmp_path, "round_")
    series.save(1, {"a": torch.randn(64)})
    path = series.path(1) / "tensors.safetensors"
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-8] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FedsamError, match=r"a checkpoint is damaged[\s\S]*the round before"):
        series.load(1)


def test_an_interrupted_write_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = CheckpointSeries(tmp_path, "round_")
    series.save(1, {"a": torch.zeros(1)})

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        series.save(2, {"a": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["round_0001"]
