"""The proximal term of FedProx: local training is held near the model that the site received.

Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, arXiv:1812.06127.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def proximal_term(parameters: Mapping[str, Tensor], received: Mapping[str, Tensor], mu: float) -> Tensor:
    """mu / 2 * sum of (w - w_received)^2 over the received tensors: the squared norm, as in the paper.

    Its gradient, mu * (w - w_received), is added to what ``.grad`` already holds by ``backward``.

    Args:
        parameters: trained tensors by name.
        received: copies, made before the round's first step, of the tensors that came from the server; local ones have no term.
        mu: strength, 0 or more.

    Returns:
        A scalar that can be differentiated.
    """
    squares = [(parameters[name] - value.to(parameters[name].device)).square().sum() for name, value in received.items()]
    return mu / 2 * torch.stack(squares).sum()
