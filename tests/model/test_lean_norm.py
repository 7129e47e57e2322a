"""A LayerNorm that keeps little: autocast's values, gradients within its rounding, and what is kept."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fedsam_pipeline.model.lean_norm import LeanNorm


def pair(channels: int, *, frozen: bool = True) -> tuple[nn.LayerNorm, LeanNorm]:
    torch.manual_seed(0)
    plain = nn.LayerNorm(channels, eps=1e-6)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    plain.requires_grad_(not frozen)
    return plain, LeanNorm.of(copy.deepcopy(plain))


def step(norm: nn.Module, x: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """Output in bfloat16, and the gradients of the input and of what trains."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = norm(x).bfloat16()
    (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return [output, *(leaf.grad for leaf in (x, *norm.parameters()) if leaf.grad is not None)]


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_under_autocast_outputs_are_equal_and_gradients_within_rounding(offset: float) -> None:
    plain, lean = pair(96)
    x = torch.randn(2, 5, 7, 96) * 3 + offset
    (output, expected), (found_output, found) = step(plain, x, torch.bfloat16), step(lean, x, torch.bfloat16)
    assert torch.equal(found_output, output) and found.dtype == torch.float32
    assert 0 < (found - expected).norm() < 2**-7 * expected.norm()


@pytest.mark.parametrize(("frozen", "dtype"), [(True, None), (False, torch.bfloat16)])
def test_without_autocast_and_where_it_trains_it_is_the_plain_norm(frozen: bool, dtype: torch.dtype | None) -> None:
    plain, lean = pair(8, frozen=frozen)
    x = torch.randn(3, 8)
    expected, found = step(plain, x, dtype), step(lean, x, dtype)
    assert len(found) == len(expected) == (2 if frozen else 4)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
    assert list(lean.state_dict()) == list(plain.state_dict())


def test_its_input_is_kept_in_half_the_memory() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    for norm in pair(64):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            norm(torch.randn(50, 64, requires_grad=True))
        inputs = [tensor for tensor in kept if tensor.shape == (50, 64)]
        assert [tensor.dtype for tensor in inputs] == [torch.bfloat16 if isinstance(norm, LeanNorm) else torch.float32]
