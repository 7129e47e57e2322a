"""How sure a mean over cases is: percentile bootstrap over cases, within each site, and paired differences of methods.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16. Cases are drawn with replacement within their site, so
that every draw has as many cases of a site as there are, and every draw is scored by the rule of ``metrics.RULE``: mean over cases, then
classes, then unweighted over sites. All methods are scored on the same draws, so the difference of two methods is paired by case.

What the interval says: how far the mean moves with the cases of these sites. It says nothing of other sites or training seeds, and is too
narrow for few cases (a site with a single case has none at all).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 12345
_CHUNK = 1000
"""draws that are scored at once; bounds memory"""


@dataclass(frozen=True)
class Interval:
    """A value and the two ends of its interval; all NaN where nothing was scored."""

    value: float
    low: float
    high: float

    @classmethod
    def of_draws(cls, value: float, draws: NDArray[np.float64], level: float = LEVEL) -> Self:
        """The percentile interval of bootstrap ``draws`` (B,) of ``value``. Draws that are NaN are left out."""
        known = draws[~np.isnan(draws)]
        if np.isnan(value) or not known.size:
            return cls(float("nan"), float("nan"), float("nan"))
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        return cls(float(value), float(low), float(high))

    def to_dict(self) -> dict[str, float | None]:
        """JSON values, NaN as ``None``."""
        return {key: None if np.isnan(number) else number for key, number in vars(self).items()}


@dataclass(frozen=True)
class SiteMeans:
    """Scores by the rule of the means, for one method or many, of the cases as they are or of bootstrap draws.

    Attributes:
        sites: names, sorted.
        by_site: (..., S) mean over cases, then over classes, of each site; NaN where a site has none.
    """

    sites: tuple[str, ...]
    by_site: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """(...) unweighted over sites."""
        return _nanmean(self.by_site, axis=-1)

    def averaged(self) -> Self:
        """The mean over methods (the last axis but one), such as the training seeds of one method; NaN where one of them has no value."""
        return type(self)(self.sites, self.by_site.mean(axis=-2))

    def extreme(self, *, largest: bool) -> NDArray[np.float64]:
        """(...) the value of the site with the largest or the smallest; NaN where no site has any."""
        missing = -np.inf if largest else np.inf
        filled = np.where(np.isnan(self.by_site), missing, self.by_site)
        found = filled.max(axis=-1) if largest else filled.min(axis=-1)
        return np.where(np.isinf(found), np.nan, found)


def site_means(values: NDArray[np.float64], sites: Sequence[str]) -> SiteMeans:
    """The rule on the cases as they are.

    Args:
        values: (M, N, K) scores of M methods on N cases and K classes; NaN is left out of every mean.
        sites: (N,) site of each case.
    """
    names, owner = _site_index(sites)
    columns = [_weighted(values[:, owner == index], np.ones((1, int((owner == index).sum()))))[0] for index in range(len(names))]
    return SiteMeans(names, np.stack(columns, axis=-1))


def bootstrap_means(values: NDArray[np.float64], sites: Sequence[str], *, resamples: int = RESAMPLES, seed: int = SEED) -> SiteMeans:
    """The rule on bootstrap draws of the cases, the same draws for every method.

    Args:
        values, sites: as in :func:`site_means`.
        resamples: draws B.
        seed: of the draws.

    Returns:
        ``by_site`` is (B, M, S).

    Raises:
        ValueError: no case, shapes that do not fit, or no draw.
    """
    if values.ndim != 3 or values.shape[1] != len(sites) or not len(sites) or resamples < 1:
        raise ValueError(f"values of shape {values.shape} for {len(sites)} cases, {resamples} draws")
    names, owner = _site_index(sites)
    generator = np.random.default_rng(seed)
    columns = []
    for index in range(len(names)):
        members = values[:, owner == index]
        count = members.shape[1]
        parts = []
        for start in range(0, resamples, _CHUNK):
            drawn = generator.multinomial(count, np.full(count, 1 / count), size=min(_CHUNK, resamples - start))
            parts.append(_weighted(members, drawn.astype(np.float64)))
        columns.append(np.concatenate(parts))
    return SiteMeans(names, np.stack(columns, axis=-1))


def paired_difference(
    method: NDArray[np.float64], reference: NDArray[np.float64], sites: Sequence[str], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """Mean of ``method`` minus mean of ``reference`` on the same cases, with its interval.

    Args:
        method: (R, N, K) scores of R runs (training seeds) of a method; their means are averaged.
        reference: (Q, N, K) the same for what it is compared with.
        sites: (N,).
        resamples: draws.
        seed: of the draws.
    """
    value = site_means(method, sites).mean.mean() - site_means(reference, sites).mean.mean()
    draws, others = (bootstrap_means(each, sites, resamples=resamples, seed=seed).mean.mean(axis=-1) for each in (method, reference))
    return Interval.of_draws(float(value), draws - others)  # the same seed and cases are the same draws


def paired_site_differences(method: NDArray[np.float64], reference: NDArray[np.float64], sites: Sequence[str]) -> dict[str, Interval]:
    """Site to the site's own mean under ``method`` minus that under ``reference``, with its interval; see ``paired_difference``."""
    means = [site_means(each, sites).averaged() for each in (method, reference)]
    draws = [bootstrap_means(each, sites).averaged() for each in (method, reference)]
    values, drawn = means[0].by_site - means[1].by_site, draws[0].by_site - draws[1].by_site
    return {site: Interval.of_draws(float(values[index]), drawn[:, index]) for index, site in enumerate(means[0].sites)}


def where_both(method: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Copies with NaN wherever any run of either lacks a value, so that both are means of the same cases and classes.

    For scores that a method can lack by its own fault, such as the distance to a mask that it left empty.
    """
    known = ~(np.isnan(method).any(axis=0) | np.isnan(reference).any(axis=0))
    return np.where(known, method, np.nan), np.where(known, reference, np.nan)


def _site_index(sites: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    names = sorted(set(sites))
    return tuple(names), np.array([names.index(site) for site in sites], dtype=np.int64)


def _weighted(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, M): mean of ``values`` (M, N, K) over cases with ``weights`` (B, N), then over classes, NaN left out."""
    known = ~np.isnan(values)
    total = np.einsum("bn,mnk->bmk", weights, np.where(known, values, 0.0), optimize=True)
    count = np.einsum("bn,mnk->bmk", weights, known.astype(np.float64), optimize=True)
    classes = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return _nanmean(classes, axis=-1)


def _nanmean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
