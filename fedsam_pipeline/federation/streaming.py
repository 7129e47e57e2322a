"""A weighted mean that takes updates as they arrive: memory for one sum, however many sites there are."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError


class WeightedMean:
    """Running weighted mean of updates, for strategies that are linear in them.

    Sums are kept in float64 with Neumaier's correction (Neumaier, ZAMM 1974), so that the order in which sites answer does not show in the
    float32 result. Memory: 16 bytes a value, whatever the number of updates; the caller may drop an update once it is added.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._corrections: dict[str, Tensor] = {}
        self._weights: list[float] = []

    def add(self, update: Mapping[str, Tensor], weight: float) -> None:
        """Takes one site's update in.

        Args:
            update: tensors by name; the same names and shapes every time.
            weight: of the site, above 0 or 0, not scaled.

        Raises:
            FedsamError: the weight is negative or not finite, or names or shapes differ from the first update's. Nothing was added then.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise FedsamError("an update has no usable weight", found=weight, expected="a number, 0 or more", fix="check the weighting")
        shapes = {name: tuple(tensor.shape) for name, tensor in update.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self._sums.items()}
        if self._weights and shapes != expected:
            names = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
            raise FedsamError(
                "two sites send different tensors, so they cannot be averaged",
                found=f"{names[0]}: {shapes.get(names[0], 'not sent')}",
                expected=f"{expected.get(names[0], 'no such tensor')}, as from the first site",
                fix="train every site with the same recipe and plan",
            )
        if not self._weights:
            self._sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
            self._corrections = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        for name, tensor in update.items():
            term = tensor.detach().cpu().to(torch.float64) * weight
            old = self._sums[name]
            new = old + term
            lost = torch.where(old.abs() >= term.abs(), (old - new) + term, (term - new) + old)
            self._corrections[name] += lost
            self._sums[name] = new
        self._weights.append(weight)

    def result(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The weighted mean of what was added so far, in sorted order of names.

        Raises:
            FedsamError: nothing was added, or all weights are 0.
        """
        total = math.fsum(self._weights)
        if not total > 0:
            raise FedsamError(
                "there is nothing to average",
                found=f"{len(self._weights)} updates, weights sum to {total:g}",
                expected="at least one update with a weight above 0",
                fix="see which sites failed in the log",
            )
        return {name: ((self._sums[name] + self._corrections[name]) / total).to(dtype) for name in sorted(self._sums)}
