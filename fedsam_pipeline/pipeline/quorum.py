"""How many sites a round needs."""

from contextlib import suppress

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.strategy_settings import require_sites, strategy_settings
from fedsam_pipeline.specs.recipe import AggregationRecipe


def checked_min_sites(number: int | None, sites: int) -> int | None:
    """``--min_sites``, if there are so many; ``FedsamError`` where not."""
    if number is not None and number > sites:
        raise FedsamError(
            "--min_sites asks for more sites than there are",
            found=f"{number} of {sites}",
            expected=f"1 to {sites}",
            fix="lower it, or leave it out",
        )
    return number


def real_quorum(aggregation: AggregationRecipe, min_sites: int | None, sites: int) -> int:
    """Updates that a round of real sites needs: as many as the user says, else more than half, and as many as the strategy means
    something with.

    Raises:
        FedsamError: there are not so many, or the strategy needs more.
    """
    settings = strategy_settings(aggregation.strategy, aggregation.lora_method, aggregation.options)
    asked = checked_min_sites(min_sites, sites)
    try:
        for number in range(sites // 2 + 1, sites) if asked is None else ():
            with suppress(FedsamError):
                require_sites(aggregation.strategy, number, settings)
                return number
        require_sites(aggregation.strategy, asked or sites, settings)
    except FedsamError as error:
        if asked is None:
            raise
        raise FedsamError(
            error.what, found=f"--min_sites {asked}", expected=error.expected, fix=f"raise --min_sites, or {error.fix}"
        ) from error
    return asked or sites
