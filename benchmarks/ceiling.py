"""What this machine can do at most, measured in the run that uses it: a large matrix product and a large copy."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop

PRODUCT_SIDE = 4096
"""of the square matrices: three of them do not fit a core's cache, and one product takes seconds at most"""
COPY_BYTES = 256 << 20
SECONDS = 1.0
"""how long each is repeated at least; the best of them counts, for others may use the machine meanwhile"""


@dataclass(frozen=True)
class Ceiling:
    """The best that was seen."""

    flops: float
    """floating-point operations a second of the product; a multiplication and an addition are two"""
    bytes_per_second: float
    """read and written together"""
    dtype: str
    device: str


def flop_counter() -> FlopCounterMode:
    """Torch's counter of floating-point operations, mended: it does not know products that are added in place, and counts the weights'
    gradient of a grouped convolution as if there were no groups."""
    mended = {
        torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1],
        torch.ops.aten.baddbmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * left[2] * right[2],
        torch.ops.aten.convolution_backward: _convolution_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=mended)


def _convolution_backward(*arguments: Any, out_shape: Any) -> int:
    """Of shapes, as torch's own formula takes them."""
    *others, groups, (of_input, of_weight, _) = arguments
    formula: Callable[..., int] = conv_backward_flop
    counted = partial(formula, *others, groups, out_val=out_shape)
    return counted([of_input, False, False]) + counted([False, of_weight, False]) // int(groups)


def measure_ceiling(device: torch.device, dtype: torch.dtype, *, seconds: float = SECONDS, side: int = PRODUCT_SIDE) -> Ceiling:
    """The ceiling of ``device`` for products of matrices of ``dtype``.

    Args:
        device: where.
        dtype: of the factors.
        seconds: how long each of the two is repeated at least.
        side: of the square matrices.
    """
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    product = _best(lambda: left @ right, device, seconds)
    copy = _best(lambda: target.copy_(source), device, seconds)
    return Ceiling(2 * side**3 / product, 2 * COPY_BYTES / copy, str(dtype).removeprefix("torch."), device.type)


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _best(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    run()
    synchronize(device)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        started = time.perf_counter()
        run()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
