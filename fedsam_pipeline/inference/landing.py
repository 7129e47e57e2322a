"""How tensors travel between main memory and a GPU while that computes; on a CPU they stay where they are."""

from collections.abc import Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on ``device``. A GPU takes it from page-locked memory, so that the program goes on meanwhile."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Landing:
    """A tensor on its way into main memory.

    The copy is queued behind what computes the tensor. What is queued afterwards does not hold it up.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host = tensor
        self._landed: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._landed.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> torch.Tensor:
        """The tensor in main memory, once it is complete."""
        if self._landed is not None:
            self._landed.synchronize()
        return self._host


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items. Each is made before the one before it is handed out, so that a GPU has work while that one is used."""
    before: list[T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before
