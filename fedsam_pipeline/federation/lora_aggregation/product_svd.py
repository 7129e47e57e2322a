"""Singular value decomposition of a product of two thin matrices, without forming the product."""

import torch
from torch import Tensor


def balanced_factors(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of ``left @ right`` of a given rank (Eckart & Young 1936), as two factors of equal norm.

    With left = Q_l R_l and right^T = Q_r R_r (QR) the singular values of the product are those of the small matrix R_l R_r^T. Signs are
    fixed: the entry of largest magnitude in every column of U is positive. Where singular values are equal, their vectors are not unique.

    Args:
        left: (rows, k) float64.
        right: (k, in) float64.
        rank: of the result.

    Returns:
        U sqrt(S) (rows, rank) and sqrt(S) V^T (rank, in), float64, by falling singular value; zero beyond the rank of the product.
    """
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    kept = min(rank, len(s))
    u, v = q_left @ u[:, :kept], q_right @ v[:kept].T
    signs = torch.sign(u.gather(0, u.abs().argmax(dim=0, keepdim=True)))  # (1, kept), never 0: the columns have norm 1
    root = s[:kept].sqrt()
    factor_b, factor_a = left.new_zeros(len(left), rank), left.new_zeros(rank, right.shape[1])
    factor_b[:, :kept], factor_a[:kept] = u * signs * root, (v * signs * root).T
    return factor_b, factor_a
