"""Records on disk: what was written is read, what was not is known."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.training import feature_file
from fedsam_pipeline.training.feature_file import FeatureFile, RecordLayout

LABELS = torch.tensor([[[-1, 0], [1, 126]], [[2, 2], [0, 1]]])


def slab(*, channels_last: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    drawn = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    return drawn.to(memory_format=torch.channels_last) if channels_last else drawn


def layout_of(features: torch.Tensor) -> RecordLayout:
    return RecordLayout.of(features, (2, 2, 2), num_classes=127)


def read(kept: FeatureFile, number: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    features, labels = kept.layout.buffers(1)
    return (kept.shaped(features), labels[0]) if kept.read_into(number, features[0], labels[0]) else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_slab_comes_back_bit_for_bit_with_its_strides(tmp_path: Path, channels_last: bool, dtype: torch.dtype) -> None:
    features = slab(channels_last=channels_last, dtype=dtype)
    with FeatureFile.create(tmp_path / "f.bin", "made of this", layout_of(features), 3) as kept:
        kept.write(1, features, LABELS)
    opened = FeatureFile.open(tmp_path / "f.bin", "made of this")
    assert opened is not None and opened.layout == layout_of(features)
    with opened:
        assert read(opened, 0) is None and read(opened, 2) is None
        found = read(opened, 1)
    assert found is not None
    assert torch.equal(found[0], features) and found[0].stride() == features.stride() and found[0].dtype == dtype
    assert torch.equal(found[1].long(), LABELS)


def test_a_file_made_from_something_else_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    assert FeatureFile.open(path, "a") is None
    FeatureFile.create(path, "a", layout_of(slab()), 3).__exit__()
    assert FeatureFile.open(path, "b") is None
    path.write_bytes(b"\xff" * 5000)
    assert FeatureFile.open(path, "a") is None


@given(where=st.integers(0, 1000), bit=st.integers(0, 7))
def test_a_record_that_changed_on_disk_does_not_count(tmp_path_factory: pytest.TempPathFactory, where: int, bit: int) -> None:
    path = tmp_path_factory.mktemp("damaged") / "f.bin"
    layout = layout_of(slab())
    with FeatureFile.create(path, "a", layout, 1) as kept:
        kept.write(0, slab(), LABELS)
        content = bytearray(path.read_bytes())
        content[feature_file.HEADER_BYTES + where % layout.record_bytes] ^= 1 << bit
        path.write_bytes(content)
        assert read(kept, 0) is None


def test_many_classes_take_wider_labels() -> None:
    assert RecordLayout.of(slab(), (2, 2, 2), num_classes=127).label_dtype == "int8"
    assert RecordLayout.of(slab(), (2, 2, 2), num_classes=129).label_dtype == "int16"


def test_a_disk_without_room_is_refused_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 5 << 20

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(FedsamError, match="disk cannot hold") as caught:
        FeatureFile.create(tmp_path / "f.bin", "a", layout_of(slab()), 1 << 20)
    assert caught.value.found == "5 MiB free" and "1048576 slabs" in str(caught.value.expected)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with FeatureFile.create(tmp_path / "f.bin", "a", layout_of(slab()), 3) as kept:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(FedsamError, match="disk is full") as caught:
            kept.write(0, slab(), LABELS)
        assert "slabs_per_case" in str(caught.value.fix)
        assert read(kept, 0) is None
