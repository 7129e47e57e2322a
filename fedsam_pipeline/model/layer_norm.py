"""LayerNorm over the channels of feature maps."""

from typing import Self

from torch import Tensor, nn
from torch.nn import functional


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
