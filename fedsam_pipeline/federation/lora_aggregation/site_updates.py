"""The updates of one round, checked and in sorted site order, whatever order they came in."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.pairs import Pair, pairs

Tensors = Mapping[str, Tensor]


class SiteUpdates:
    """Updates by site, all of the same names and shapes. Sums are taken in float64, site by site in sorted order.

    Args:
        updates: tensors by site; every site sends the same names and shapes.
        weights: by site, not negative; they are scaled to sum to one.

    Attributes:
        sites: names, sorted.
        shares: weights that sum to one, in the order of ``sites``.
        names: of the tensors, sorted.

    Raises:
        FedsamError: no site, a weight that is missing, negative or not finite, all weights 0, or sites that differ in names or shapes.
    """

    def __init__(self, updates: Mapping[str, Tensors], weights: Mapping[str, float]) -> None:
        self._updates = updates
        self.sites = tuple(sorted(updates))
        self.shares = _shares(self.sites, weights)
        self.names = tuple(sorted(updates[self.sites[0]]))
        for site in self.sites[1:]:
            self._compare(site)

    def values(self, name: str) -> list[Tensor]:
        """One tensor of every site, float64."""
        return [self._updates[site][name].to(torch.float64) for site in self.sites]

    def mean(self, name: str) -> Tensor:
        """Weighted mean of a tensor, float64."""
        total = torch.zeros(self._updates[self.sites[0]][name].shape, dtype=torch.float64)
        for site, share in zip(self.sites, self.shares, strict=True):
            total.add_(self._updates[site][name].to(torch.float64), alpha=share)
        return total

    def means(self) -> dict[str, Tensor]:
        """Weighted mean of every tensor, float32."""
        return {name: self.mean(name).float() for name in self.names}

    def pairs(self) -> tuple[Pair, ...]:
        """The LoRA pairs, sorted.

        Raises:
            FedsamError: there is none, a factor lacks its partner, or A (rank, in) and B (rows, rank) do not fit each other.
        """
        made = pairs(self.names)
        first = self._updates[self.sites[0]]
        for pair in made:
            a, b = first[pair.a].shape, first[pair.b].shape
            if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0:
                raise FedsamError(
                    "two LoRA factors do not fit each other",
                    found=f"{pair.a} {tuple(a)}, {pair.b} {tuple(b)}",
                    expected="A (rank, in) and B (rows, rank), rank at least 1",
                    fix="train every site with the same recipe and plan",
                )
        return made

    def _compare(self, site: str) -> None:
        first, other = self._updates[self.sites[0]], self._updates[site]
        differing = sorted(set(first) ^ set(other)) or [name for name in self.names if first[name].shape != other[name].shape]
        if differing:
            name = differing[0]
            shown = [tuple(tensors[name].shape) if name in tensors else "not sent" for tensors in (first, other)]
            raise FedsamError(
                "two sites send different tensors, so they cannot be aggregated",
                found=f"{name}: {shown[0]} from {self.sites[0]}, {shown[1]} from {site}",
                expected="the same names, shapes and LoRA rank from every site",
                fix="train every site with the same recipe and plan",
            )


def _shares(sites: tuple[str, ...], weights: Mapping[str, float]) -> tuple[float, ...]:
    values = [weights.get(site, math.nan) for site in sites]
    wrong = [f"{site}: {value}" for site, value in zip(sites, values, strict=True) if not (math.isfinite(value) and value >= 0)]
    total = math.fsum(values)
    if wrong or not total > 0:
        raise FedsamError(
            "the sites cannot be weighted",
            found=", ".join(wrong) or ("no site" if not sites else "all weights are 0"),
            expected="at least one site, a weight of 0 or more for each, one above 0",
            fix="check the numbers of cases and the weighting of the recipe",
        )
    return tuple(value / total for value in values)
