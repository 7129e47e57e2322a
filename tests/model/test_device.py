"""Which device computes."""

import pytest
import torch

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.device import autocast_dtype, choose_device


@pytest.mark.parametrize(("there", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    assert choose_device("auto").type == chosen
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize(("name", "precision"), [("cuda", "high"), ("cpu", "highest")])
def test_tf32_is_used_on_a_gpu_and_changes_nothing_on_a_cpu(monkeypatch: pytest.MonkeyPatch, name: str, precision: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = ["highest"]
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    choose_device(name)
    assert asked[-1] == precision
    assert torch.backends.cudnn.allow_tf32 is (name == "cuda")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FedsamError, match=r"there is no CUDA device here[\s\S]*use -device cpu"):
        choose_device("cuda")


def test_an_unknown_device() -> None:
    with pytest.raises(FedsamError, match=r"unknown device[\s\S]*tpu[\s\S]*auto, cpu or cuda"):
        choose_device("tpu")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, None), ({}, None)],
)
def test_a_processor_uses_bfloat16_only_where_it_has_units(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert autocast_dtype(torch.device("cpu")) is dtype


@pytest.mark.parametrize(("units", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_a_gpu_uses_bfloat16_only_where_it_has_units(monkeypatch: pytest.MonkeyPatch, units: bool, dtype: torch.dtype | None) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return units

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert autocast_dtype(torch.device("cuda")) is dtype
    assert asked == [False]
