"""Layers for feature maps (B, C, H, W) in channels-last memory, where a pixel's channels lie side by side."""

from typing import Self

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


def in_channels_last(layers: nn.Sequential) -> None:
    """Replaces SAM's norms and GELUs among ``layers`` by ours, parameters and their names kept."""
    for i, layer in enumerate(layers):
        if isinstance(layer, LayerNorm2d):
            layers[i] = ChannelNorm.of(layer)
        elif isinstance(layer, nn.GELU):
            layers[i] = ChannelGELU()
