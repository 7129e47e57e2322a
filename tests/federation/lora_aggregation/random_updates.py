"""Random updates of several sites, and the product that a perfect aggregation gives."""

import torch
from hypothesis import strategies as st
from torch import Tensor

Updates = dict[str, dict[str, Tensor]]
LAYER = "encoder.attn.qkv"
A, B, BIAS = f"{LAYER}.lora_A_q", f"{LAYER}.lora_B_q", "decoder.bias"


def random_updates(seed: int, sites: int, rows: int = 7, inputs: int = 9, rank: int = 3) -> Updates:
    generator = torch.Generator().manual_seed(seed)
    shapes = {A: (rank, inputs), B: (rows, rank), BIAS: (4,)}
    return {f"site_{i}": {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for i in range(sites)}


def random_weights(seed: int, sites: int) -> dict[str, float]:
    values = torch.rand(sites, generator=torch.Generator().manual_seed(seed + 1)) * 40 + 1
    return {f"site_{i}": float(value) for i, value in enumerate(values)}


def mean_product(updates: Updates, weights: dict[str, float]) -> Tensor:
    """sum w_i B_i A_i / sum w_i, float64."""
    return sum(w * (updates[s][B].double() @ updates[s][A].double()) for s, w in weights.items()) / sum(weights.values())  # type: ignore[return-value]


def product(tensors: dict[str, Tensor]) -> Tensor:
    return tensors[B].double() @ tensors[A].double()


def assert_same_product(found: Tensor, updates: Updates, weights: dict[str, float]) -> None:
    """Relative to the size of what was summed: the sum itself may cancel."""
    size = max(float((tensors[B].double() @ tensors[A].double()).norm()) for tensors in updates.values())
    assert float((found - mean_product(updates, weights)).norm()) <= 1e-6 * size


cohorts = st.tuples(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
"""seed, sites, rows, inputs, rank: ranks above the sides of the weight included"""


def cohort(drawn: tuple[int, int, int, int, int]) -> tuple[Updates, dict[str, float]]:
    seed, sites, rows, inputs, rank = drawn
    return random_updates(seed, sites, rows, inputs, rank), random_weights(seed, sites)
