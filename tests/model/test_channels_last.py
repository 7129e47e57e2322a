"""Layers in channels-last memory: SAM's values, gradients and names, whatever the memory of what comes in."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsam_pipeline.model.channels_last import ChannelNorm, PixelDoubling, in_channels_last
from fedsam_pipeline.model.sam_modules import LayerNorm2d


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 3), channels=st.integers(1, 20), height=st.integers(1, 9), width=st.integers(1, 9), last=st.booleans())
def test_channel_norm_is_sams(batch: int, channels: int, height: int, width: int, last: bool) -> None:
    plain = LayerNorm2d(channels)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    ours = ChannelNorm.of(plain)
    assert list(ours.state_dict()) == list(plain.state_dict())
    images = torch.randn(batch, channels, height, width) * 3 + 1
    images = images.contiguous(memory_format=torch.channels_last) if last else images
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 3), inputs=st.integers(1, 9), outputs=st.integers(1, 9), height=st.integers(1, 6), width=st.integers(1, 6))
def test_doubling_pixels_is_the_transposed_convolution(batch: int, inputs: int, outputs: int, height: int, width: int) -> None:
    plain = nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)
    ours = PixelDoubling.of(copy.deepcopy(plain))
    images = torch.randn(batch, inputs, height, width)
    found = []
    for layer in (plain, ours):
        own = images.clone().requires_grad_()
        output = layer(own)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        found.append([output, own.grad, *(parameter.grad for parameter in layer.parameters())])
    for theirs, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "other", [nn.ConvTranspose2d(2, 2, 3, 2), nn.ConvTranspose2d(2, 2, 2, 1), nn.ConvTranspose2d(2, 2, 2, 2, bias=False)]
)
def test_no_other_transposed_convolution_is_taken(other: nn.ConvTranspose2d) -> None:
    with pytest.raises(ValueError, match="no doubling"):
        PixelDoubling.of(other)


def test_an_upscaling_keeps_its_values_gradients_and_names() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2), LayerNorm2d(4), nn.GELU(), nn.ConvTranspose2d(4, 2, 2, 2), nn.GELU())
    ours = copy.deepcopy(plain)
    in_channels_last(ours)
    assert list(ours.state_dict()) == list(plain.state_dict()) and isinstance(ours[1], ChannelNorm)
    images = torch.randn(2, 8, 5, 3)
    for layers in (plain, ours):
        (layers(images) * torch.linspace(-1, 1, 2 * 2 * 20 * 12).view(2, 2, 20, 12)).sum().backward()
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-4, atol=1e-5)
    for own, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-4)
