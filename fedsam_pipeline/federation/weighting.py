"""How much each site's update counts."""

import math
from collections.abc import Mapping
from typing import get_args

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.recipe import Weighting

WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
FAIRNESS = 1.0
"""exponent of the loss: 0 is weighting by size, larger values help the worst-served sites more"""
SMALLEST_LOSS = 0.01
"""a site with a Dice of 1 still counts"""


def site_weights(
    weighting: str, num_cases: Mapping[str, int], dice: Mapping[str, float] | None = None, fairness: float = FAIRNESS
) -> dict[str, float]:
    """Weights by site, in sorted order, not scaled.

    ``size``: number of training cases n (McMahan et al., AISTATS 2017). ``equal``: 1. ``validation``: n * max(1 - Dice, 0.01)^fairness,
    with the Dice that the *received* model had on the site's validation cases: sites that the shared model serves badly count more. These
    are the factors p_k F_k^q with which q-FFL weighs the sites' gradients (Li et al., "Fair resource allocation in federated learning",
    ICLR 2020, arXiv:1905.10497), with 1 - Dice as the loss F and without their estimate of the step size; taking the Dice of a few cases
    is ours.

    Args:
        weighting: one of ``WEIGHTINGS``.
        num_cases: training cases by site.
        dice: last known Dice of the received model by site, 0 to 1. A site without one (no validation cases, or NaN) gets the mean loss of
            the others; before any is known all sites weigh by size.
        fairness: exponent, 0 or more.

    Raises:
        FedsamError: unknown weighting, no site, a number of cases below 1, a Dice outside 0 to 1, or a negative exponent.
    """
    if weighting not in WEIGHTINGS:
        raise FedsamError(
            "unknown weighting of sites",
            found=weighting,
            expected=f"one of {', '.join(WEIGHTINGS)}",
            fix="change the recipe's aggregation",
        )
    known = {site: value for site, value in sorted((dice or {}).items()) if site in num_cases and not math.isnan(value)}
    wrong = [f"{site}: {count} cases" for site, count in sorted(num_cases.items()) if count < 1]
    wrong += [f"{site}: Dice {value}" for site, value in known.items() if not 0 <= value <= 1]
    wrong += [f"fairness {fairness}"] * (not (math.isfinite(fairness) and fairness >= 0))
    if wrong or not num_cases:
        raise FedsamError(
            "the sites cannot be weighted",
            found=", ".join(wrong) or "no site",
            expected="at least one site, each with 1 training case or more, Dice from 0 to 1, fairness 0 or more",
            fix="leave out sites that train on nothing; check --weighting",
        )
    if weighting == "equal":
        return dict.fromkeys(sorted(num_cases), 1.0)
    sizes = {site: float(num_cases[site]) for site in sorted(num_cases)}
    if weighting == "size" or not known:
        return sizes
    losses = {site: max(1 - value, SMALLEST_LOSS) for site, value in known.items()}
    usual = math.fsum(losses.values()) / len(losses)
    return {site: size * losses.get(site, usual) ** fairness for site, size in sizes.items()}
