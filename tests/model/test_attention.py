"""Attention in parts: equal to torch's, whatever the parts; and the path of other devices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fedsam_pipeline.model import attention
from fedsam_pipeline.model.attention import attend, fused


def gradients(of: list[Tensor], output: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), of)]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 12),
    asked=st.integers(1, 12),
    width=st.integers(1, 9),
    value_width=st.integers(1, 9),
    biased=st.booleans(),
    small=st.sampled_from([0, 256]),
    scores=st.sampled_from([1, 40, 500, 1 << 20]),
)
def test_outputs_and_gradients_equal_torchs(
    batch: int, heads: int, tokens: int, asked: int, width: int, value_width: int, biased: bool, small: int, scores: int
) -> None:
    queries = tokens if biased else asked
    query, key = (torch.randn(batch, count, heads, width).transpose(1, 2).requires_grad_() for count in (queries, tokens))
    value = torch.randn(batch, heads, tokens, value_width, requires_grad=True)
    bias = torch.randn(heads, tokens, tokens, requires_grad=True) if biased else None
    inputs = [query, key, value, *([] if bias is None else [bias])]
    mask = None if bias is None else bias[None]
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SMALL_WINDOW", small)
        patch.setattr(attention, "SCORES_AT_ONCE", scores)
        found = gradients(inputs, attend(query, key, value, bias))
    for own, torchs in zip(found, gradients(inputs, expected), strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("biased", "queries"), [(False, 5), (True, 5), (False, 2)])
def test_the_kernel_of_other_devices_computes_the_same(biased: bool, queries: int) -> None:
    query, key = torch.randn(2, 3, queries, 12), torch.randn(2, 3, 5, 12)
    value = torch.randn(2, 3, 5, 8)
    bias = torch.randn(3, 5, 5) if biased else None
    torch.testing.assert_close(fused(query, key, value, bias), attend(query, key, value, bias), rtol=1e-5, atol=1e-6)


def test_shapes_alone_can_be_computed() -> None:
    with torch.device("meta"):
        query, key, value = torch.empty(2, 3, 5, 8), torch.empty(2, 3, 5, 8), torch.empty(2, 3, 5, 4)
    assert attend(query, key, value).shape == (2, 3, 5, 4)
