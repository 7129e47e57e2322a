"""Lets the slices of a slab see each other after the encoder, so that each slice is still encoded once."""

from torch import Tensor, nn

WIDTH = 32
"""channels that the slices exchange: thin, about 17,000 parameters at SAM's 256"""


class SliceMixer(nn.Module):
    """``x + up(gelu(along(down(x))))``: 1x1 down, a depthwise convolution over three slices, 1x1 up that starts at zero.

    It sits after the encoder's neck. At round 0 it changes nothing. A (2+1)D factorisation as in Tran et al., CVPR 2018
    (arXiv:1711.11248), as a residual adapter.

    Args:
        dim: channels of the embeddings.
        depth: slices of a slab.
    """

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.down = nn.Conv2d(dim, WIDTH, 1)
        self.along = nn.Conv3d(WIDTH, WIDTH, (3, 1, 1), padding=(1, 0, 0), groups=WIDTH)
        self.gelu = nn.GELU()
        self.up = nn.Conv2d(WIDTH, dim, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (N, dim, h, w) of whole slabs one after the other, N a multiple of ``depth``; the same shape.

        Raises:
            ValueError: N is no whole number of slabs.
        """
        if len(embeddings) % self.depth:
            raise ValueError(f"{len(embeddings)} slices are no whole number of slabs of {self.depth}")
        slabs = self.down(embeddings).unflatten(0, (-1, self.depth)).transpose(1, 2)  # (B, WIDTH, D, h, w)
        mixed = self.gelu(self.along(slabs)).transpose(1, 2).flatten(0, 1)
        return embeddings + self.up(mixed)  # type: ignore[no-any-return]
