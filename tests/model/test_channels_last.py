"""Layers in channels-last memory: SAM's values, gradients and names, whatever the memory of what comes in."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsam_pipeline.model.channels_last import ChannelNorm, in_channels_last
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
