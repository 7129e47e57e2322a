"""Checkpoints: the last two are kept, damage is noticed, an interrupted write leaves nothing."""

import json
import resource
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation import checkpoints
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.files import sha256_file, write_json
from fedsam_pipeline.model.trained_files import load_tensors
from tests.mutations import mutated_bytes


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


@pytest.mark.parametrize("info", ["[]", '"text"', "null", "{", '{"sha256": 7}', '{"sha256": [[]]}'])
def test_an_info_file_of_another_kind_is_damage(tmp_path: Path, info: str) -> None:
    series = CheckpointSeries(tmp_path, "round_")
    series.save(1, {"a": torch.zeros(1)})
    (series.path(1) / "checkpoint.json").write_text(info)
    with pytest.raises(FedsamError, match=r"(damaged|cannot be read as JSON)[\s\S]*the round before"):
        series.load(1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_tensor_file_under_its_right_hash_is_refused_or_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A forger computes the hash anew."""
    series = CheckpointSeries(tmp_path_factory.getbasetemp() / "forged", "round_")
    if not series.rounds():
        series.save(1, {"a": torch.zeros(2, 3), "b": torch.ones(5)})
    path = series.path(1) / "tensors.safetensors"
    valid = save({"a": torch.zeros(2, 3), "b": torch.ones(5)})
    path.write_bytes(data.draw(mutated_bytes(valid)))
    write_json(series.path(1) / "checkpoint.json", {"schema_version": 1, "round": 1, "sha256": sha256_file(path)})
    try:
        assert all(isinstance(tensor, torch.Tensor) for tensor in series.load(1).values())
    except FedsamError as error:
        assert "a checkpoint is damaged" in str(error)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        [],
    ],
    ids=["terabytes", "overflow", "beyond the end", "backwards", "unknown type", "shared bytes", "list"],
)
def test_a_header_that_says_too_much_allocates_nothing(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(FedsamError, match="a tensor file cannot be read"):
        load_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("size", [0, 2, 2**40, 2**64 - 1])
def test_a_header_of_any_length_allocates_nothing(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}")
    try:
        assert load_tensors(tmp_path / "a.safetensors") == {} and size == 2
    except FedsamError as error:
        assert size != 2 and "a tensor file cannot be read" in str(error)


def test_an_interrupted_write_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = CheckpointSeries(tmp_path, "round_")
    series.save(1, {"a": torch.zeros(1)})

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(FedsamError, match="No space left") as error:
        series.save(2, {"a": torch.ones(1)})
    assert error.value.path == str(tmp_path / "round_0002") and "free some room" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["round_0001"]


def test_the_last_ones_are_kept_however_far_apart(tmp_path: Path) -> None:
    series = CheckpointSeries(tmp_path, "state_r", 3)
    for number in (1, 6, 9, 20):
        series.save(number, {})
    assert series.rounds() == [6, 9, 20]
    series.save(9, {})  # done again
    assert series.rounds() == [6, 9, 20]


def test_a_file_that_may_not_grow_leaves_the_earlier_one(tmp_path: Path) -> None:
    series = CheckpointSeries(tmp_path, "round_")
    series.save(1, {"a": torch.zeros(1)})
    known = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, known[1]))
    try:
        with pytest.raises(FedsamError, match="a checkpoint cannot be written"):
            series.save(2, {"a": torch.ones(4096)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, known)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.iterdir()] == ["round_0001"] and series.latest() is not None


def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series = CheckpointSeries(tmp_path, "round_")
    for number in (1, 2, 3):
        series.save(number, {"a": torch.full((1,), float(number))})
    assert series.rounds() == [2, 3]
    (tmp_path / "round_0003" / "tensors.safetensors").write_bytes(b"torn")
    assert series.latest() == (2, {"a": torch.full((1,), 2.0)})
    assert "round 3 is passed over, the checkpoint before it is taken: a checkpoint is damaged" in caplog.text
    (tmp_path / "round_0002" / "checkpoint.json").write_text("{")
    with pytest.raises(FedsamError) as error:
        series.latest()
    assert error.value.path is not None and "round_0003" in error.value.path, "the newest is named"
    assert CheckpointSeries(tmp_path / "nothing", "round_").latest() is None
