"""Layers for feature maps (B, C, H, W) in channels-last memory, where a pixel's channels lie side by side."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsam_pipeline.model.sam_modules import LayerNorm2d


class ChannelNorm(nn.Module):
    """SAM's ``LayerNorm2d`` in one pass over memory: (B, C, H, W) to the same, in channels-last memory.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = nn.LayerNorm(channels).parameters()
        self.eps = eps

    @classmethod
    def of(cls, plain: nn.Module) -> Self:
        """Takes over the parameters of a ``LayerNorm2d``."""
        weight = plain.get_parameter("weight")
        norm = cls(len(weight), float(plain.eps))  # type: ignore[arg-type]
        norm.weight, norm.bias = weight, plain.get_parameter("bias")
        return norm

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def gelu(x: Tensor) -> Tensor:
    """GELU of a feature map, seen as the contiguous tensor that torch's fast CPU kernel wants: half the time, the same values."""
    return functional.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelGELU(nn.Module):
    """``gelu`` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class PixelDoubling(nn.ConvTranspose2d):
    """A transposed convolution of 2 x 2 with stride 2 as one product of matrices: (B, C, H, W) to (B, C', 2 H, 2 W), channels last.

    What the pixels grow into does not overlap, so there is nothing to sum. Both passes take less than half the time of torch's own.
    """

    @classmethod
    def of(cls, plain: nn.ConvTranspose2d) -> Self:
        """Takes over the parameters of ``plain``.

        Raises:
            ValueError: it is of another size, or without bias.
        """
        if plain.kernel_size != (2, 2) or plain.stride != (2, 2) or plain.bias is None:
            raise ValueError(f"no doubling of pixels: {plain}")
        with torch.device("meta"):
            layer = cls(plain.in_channels, plain.out_channels, kernel_size=2, stride=2)
        layer.weight, layer.bias = plain.weight, plain.bias
        return layer.train(plain.training)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert self.bias is not None and output_size is None
        batch, _, height, width = x.shape
        matrix = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * C', C)
        grown = functional.linear(x.permute(0, 2, 3, 1), matrix, self.bias.repeat(4)).view(batch, height, width, 2, 2, -1)
        return grown.transpose(2, 3).reshape(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def in_channels_last(layers: nn.Sequential) -> None:
    """Replaces SAM's norms, GELUs and transposed convolutions among ``layers`` by ours, parameters and their names kept."""
    for i, layer in enumerate(layers):
        if isinstance(layer, LayerNorm2d):
            layers[i] = ChannelNorm.of(layer)
        elif isinstance(layer, nn.GELU):
            layers[i] = ChannelGELU()
        elif isinstance(layer, nn.ConvTranspose2d):
            layers[i] = PixelDoubling.of(layer)
