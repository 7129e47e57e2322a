"""The proximal term: value, gradient, and that it holds training near the received model."""

import pytest
import torch
from torch import nn

from fedsam_pipeline.training.proximal import proximal_term


def test_value_and_gradient_are_those_of_the_squared_norm() -> None:
    parameters = {
        "a": nn.Parameter(torch.tensor([1.0, 4.0])),
        "b": nn.Parameter(torch.tensor([[2.0]])),
        "local": nn.Parameter(torch.ones(3)),
    }
    received = {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([[5.0]])}
    term = proximal_term(parameters, received, mu=0.5)
    assert term.item() == pytest.approx(0.25 * (1 + 4 + 9))
    parameters["a"].grad = torch.ones(2)
    term.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(parameters["a"].grad, torch.tensor([1.5, 2.0]))  # added to what was there
    torch.testing.assert_close(parameters["b"].grad, torch.tensor([[-1.5]]))
    assert parameters["local"].grad is None


def test_frozen_parameters_have_no_gradient() -> None:
    parameters = {"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1), requires_grad=False)}
    proximal_term(parameters, {"a": torch.zeros(1), "b": torch.zeros(1)}, mu=1.0).backward()  # type: ignore[no-untyped-call]
    assert parameters["a"].grad is not None and parameters["b"].grad is None


@pytest.mark.parametrize("mu", [0.0, 1.0, 10.0])
def test_training_ends_where_loss_and_term_balance(mu: float) -> None:
    weight, received = nn.Parameter(torch.zeros(1)), {"w": torch.zeros(1)}
    optimizer = torch.optim.SGD([weight], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (weight - 3).square().sum().backward()  # type: ignore[no-untyped-call]  # alone it would end at 3
        proximal_term({"w": weight}, received, mu).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert weight.item() == pytest.approx(6 / (2 + mu), abs=1e-3)
