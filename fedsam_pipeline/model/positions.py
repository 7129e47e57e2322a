"""SAM's encoding of positions, in full precision wherever it is computed."""

import math
from typing import Self

import torch
from torch import Tensor

from fedsam_pipeline.model.sam_modules import PositionEmbeddingRandom


class ExactPositions(PositionEmbeddingRandom):  # type: ignore[misc]
    """Random Fourier features (Tancik et al., NeurIPS 2020, arXiv:2006.10739) of places in the image.

    SAM's own are a product of matrices, which autocast and TF32 round: in an image of 1024 pixels bfloat16 moves a place by about one.
    These are sums of products, which neither touches.
    """

    @classmethod
    def of(cls, plain: PositionEmbeddingRandom) -> Self:
        """Takes over the frequencies of ``plain``."""
        with torch.device("meta"):
            positions = cls()
        positions.positional_encoding_gaussian_matrix = plain.positional_encoding_gaussian_matrix
        return positions

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        """Places (..., 2), x and y from 0 to 1, to (..., 2 * frequencies)."""
        of_x, of_y = self.positional_encoding_gaussian_matrix
        x, y = (2 * coords - 1).unbind(-1)
        angles = 2 * math.pi * (x[..., None] * of_x + y[..., None] * of_y)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
