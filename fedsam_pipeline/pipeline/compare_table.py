"""From scored models to the table of a comparison: means, intervals, paired differences, traffic, time, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    SEED,
    Interval,
    bootstrap_means,
    paired_difference,
    paired_site_differences,
    site_means,
    where_both,
)
from fedsam_pipeline.evaluation.metrics import RULE
from fedsam_pipeline.evaluation.surface import RULE as HD95_RULE

METHOD = (
    f"{LEVEL:.0%} percentile bootstrap of {RESAMPLES} draws over cases within each site, the same draws for all methods; "
    "of several seeds the mean, of several folds the cases of all; says nothing of other sites or seeds"
)


@dataclass(frozen=True)
class Traffic:
    """Bytes of Flower messages in one run, all sites together.

    Attributes:
        up, down: from and to the sites in a round, mean over rounds.
        total: both directions, all rounds and the last evaluation.
    """

    up: float
    down: float
    total: float

    @property
    def per_round(self) -> float:
        """Both directions."""
        return self.up + self.down


@dataclass(frozen=True)
class MethodResult:
    """What a row of the table is made of.

    Attributes:
        name: of the row.
        recipe, protocol, strategy, wire: what it is; ``strategy`` and ``wire`` are ``None`` where nothing is aggregated.
        learning_rate: at the peak.
        random_encoder: whether the image encoder was drawn at random.
        dice, hd95, missing: (R, N, K), one model a training seed and case: the one whose protocol scores this case.
        traffic: mean over runs; ``None`` where nothing travels.
        seconds: of training, all runs of a seed and fold together, mean over seeds and folds.
        peak_memory: bytes of the largest worker process; ``None`` where it is not known.
        elsewhere: of ``local``: site that trained to (R, N, K) Dice of its models at every case.
    """

    name: str
    recipe: str
    protocol: str
    strategy: str | None
    wire: str | None
    learning_rate: float
    random_encoder: bool
    dice: NDArray[np.float64]
    hd95: NDArray[np.float64]
    missing: NDArray[np.bool_]
    traffic: Traffic | None
    seconds: float
    peak_memory: int | None
    elsewhere: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def traffic_of(document: Mapping[str, Any]) -> Traffic:
    """Sums of a ``communication.json``."""
    up = down = total = rounds = 0
    for entry in document["rounds"]:
        sent = sum(site["down"]["bytes_message"] for site in entry["sites"].values())
        received = sum(site["up"]["bytes_message"] for site in entry["sites"].values())
        total += sent + received
        if entry["message"] == "train.round":
            up, down, rounds = up + received, down + sent, rounds + 1
    return Traffic(up / max(1, rounds), down / max(1, rounds), total)


def mean_traffic(runs: Sequence[Traffic]) -> Traffic:
    """Mean over runs."""
    return Traffic(*(float(np.mean([getattr(run, part) for run in runs])) for part in ("up", "down", "total")))


def pool_folds(results: Sequence[MethodResult]) -> MethodResult:
    """One row of the same method's on the cases of several folds, one after the other."""

    def cases(part: str) -> NDArray[Any]:
        return np.concatenate([getattr(result, part) for result in results], axis=1)

    first = results[0]
    travelled = [result.traffic for result in results if result.traffic is not None]
    return replace(
        first,
        dice=cases("dice"),
        hd95=cases("hd95"),
        missing=cases("missing"),
        traffic=mean_traffic(travelled) if travelled else None,
        seconds=float(np.mean([result.seconds for result in results])),
        peak_memory=max((result.peak_memory for result in results if result.peak_memory is not None), default=None),
        elsewhere={site: np.concatenate([result.elsewhere[site] for result in results], axis=1) for site in first.elsewhere},
    )


def _site_dice(dice: NDArray[np.float64], sites: Sequence[str]) -> dict[str, float | None]:
    """Dice of each site, mean over the R models of ``dice`` (R, N, K)."""
    means = site_means(dice, sites)
    return {site: _number(value) for site, value in zip(means.sites, means.by_site.mean(axis=0), strict=True)}


def compare_methods(results: Sequence[MethodResult], sites: Sequence[str]) -> dict[str, Any]:
    """The computed part of ``comparison.json``: rules, how intervals were made, cases by site, names of the first and best, and all rows.

    Args:
        results: at least one, the first is what the others are compared with.
        sites: (N,) site of each case.
    """
    means = [float(site_means(result.dice, sites).mean.mean()) for result in results]
    first = results[0]
    eligible = [index for index, result in enumerate(results) if result.traffic is not None and not np.isnan(means[index])]
    eligible = eligible or [index for index, mean in enumerate(means) if not np.isnan(mean)]
    best = results[max(eligible, key=means.__getitem__)] if eligible else first
    return {
        "rule": RULE,
        "hd95_rule": HD95_RULE,
        "intervals": {"method": METHOD, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "cases": {site: list(sites).count(site) for site in sorted(set(sites))},
        "reference": first.name,
        "best": best.name,
        "methods": [_record(result, first, best, sites) | _against_local(result, results, sites) for result in results],
    }


def _against_local(result: MethodResult, results: Sequence[MethodResult], sites: Sequence[str]) -> dict[str, Any]:
    """What the exchange of updates gives each site: Dice minus that of the site's own model, of the same recipe and rate."""

    def training(of: MethodResult) -> tuple[str, float, bool]:
        return of.recipe, of.learning_rate, of.random_encoder

    alone = [other for other in results if other.protocol == "local" and training(other) == training(result)]
    if result.protocol != "federated" or not alone:
        return {"difference_to_local": None}
    differences = paired_site_differences(result.dice, alone[0].dice, sites)
    return {"difference_to_local": {"name": alone[0].name, "dice": {site: found.to_dict() for site, found in differences.items()}}}


def _record(result: MethodResult, first: MethodResult, best: MethodResult, sites: Sequence[str]) -> dict[str, Any]:
    traffic = result.traffic
    return {
        "name": result.name,
        "recipe": result.recipe,
        "protocol": result.protocol,
        "strategy": result.strategy,
        "wire": result.wire,
        "learning_rate": result.learning_rate,
        "random_encoder": result.random_encoder,
        "seeds": len(result.dice),
        "dice": _scores(result.dice, sites, worst_is_largest=False),
        "hd95": _scores(result.hd95, sites, worst_is_largest=True) | {"missing": _missing(result)},
        "difference_to_reference": _difference(result, first, sites),
        "difference_to_best": _difference(result, best, sites),
        "bytes": None
        if traffic is None
        else {
            "up_per_round": traffic.up,
            "down_per_round": traffic.down,
            "per_round": traffic.per_round,
            "total": traffic.total,
            "reference_over_this": None if first.traffic is None else first.traffic.per_round / traffic.per_round,
        },
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "elsewhere": {site: _site_dice(dice, sites) for site, dice in result.elsewhere.items()},
    }


def _scores(values: NDArray[np.float64], sites: Sequence[str], *, worst_is_largest: bool) -> dict[str, Any]:
    """Mean, every site and the worst of them, each with its interval; the seeds are averaged before anything else."""
    found, drawn = site_means(values, sites), bootstrap_means(values, sites)
    point, draws = found.averaged(), drawn.averaged()
    seeds = found.mean[~np.isnan(found.mean)]
    worst = point.extreme(largest=worst_is_largest)
    at = None if np.isnan(worst) else point.sites[int(np.flatnonzero(point.by_site == worst)[0])]
    return {
        "mean": Interval.of_draws(float(point.mean), draws.mean).to_dict(),
        "sites": {
            site: Interval.of_draws(float(point.by_site[index]), draws.by_site[:, index]).to_dict()
            for index, site in enumerate(point.sites)
        },
        "worst": {"site": at} | Interval.of_draws(float(worst), draws.extreme(largest=worst_is_largest)).to_dict(),
        "seed_sd": float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
    }


def _difference(result: MethodResult, other: MethodResult, sites: Sequence[str]) -> dict[str, Any]:
    hd95, other_hd95 = where_both(result.hd95, other.hd95)
    return {
        "dice": paired_difference(result.dice, other.dice, sites).to_dict(),
        "hd95": paired_difference(hd95, other_hd95, sites).to_dict(),
    }


def _missing(result: MethodResult) -> float:
    """Masks of a class that lack a distance, of one run: mean over seeds."""
    return float(result.missing.sum(axis=(1, 2)).mean())


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
