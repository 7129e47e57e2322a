"""What goes together with encrypted sums; everything else is refused before round 1."""

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.encrypted_sums import MAX_SITES
from fedsam_pipeline.federation.lora_aggregation.methods import LINEAR
from fedsam_pipeline.federation.strategy_settings import UNWEIGHTED
from fedsam_pipeline.specs.recipe import AggregationRecipe

LEAST_SITES = 2


def require_encryptable(aggregation: AggregationRecipe) -> None:
    """Refuses what needs to see single updates, or has to change what travels.

    Args:
        aggregation: of the recipe, with the user's flags.

    Raises:
        FedsamError: one of these.
    """
    strategy, method = aggregation.strategy, aggregation.lora_method
    if strategy in UNWEIGHTED:
        raise FedsamError(
            f"{strategy} compares the updates of single sites, which nobody sees under --encrypt",
            found=f"strategy {strategy}",
            expected="a strategy of the mean: fedavg, fedprox, fedavgm, fedadam or fedyogi",
            fix="use --strategy fedavg, or train without --encrypt: against malicious sites or against a curious server, not both",
        )
    if method is not None and method not in LINEAR:
        raise FedsamError(
            f"{method} computes with the factors of single sites, which nobody sees under --encrypt",
            found=f"LoRA method {method}",
            expected=f"none, or one whose result is a mean: {', '.join(sorted(LINEAR))}",
            fix="use --lora_method none or another of these, or train without --encrypt",
        )
    if aggregation.weighting == "validation":
        raise FedsamError(
            "weighting by validation is the server's, and under --encrypt the sites weigh their own updates",
            found="weighting validation",
            expected="size or equal",
            fix="use --weighting size, or train without --encrypt",
        )
    if aggregation.wire != "fp32":
        raise FedsamError(
            "an encrypted update cannot travel over a lossy wire: it is no float that could be rounded",
            found=f"wire {aggregation.wire}",
            expected="fp32",
            fix="add --wire fp32, or train without --encrypt",
        )


def require_enough_to_encrypt(sites: int, min_sites: int | None) -> None:
    """Refuses a federation whose sums could be of one site alone, or of more sites than fit.

    Args:
        sites: of the run.
        min_sites: updates that a round needs; ``None``: all.

    Raises:
        FedsamError: there are too few or too many.
    """
    if not LEAST_SITES <= sites <= MAX_SITES:
        raise FedsamError(
            "encrypted sums need several sites" if sites < LEAST_SITES else "encrypted sums do not hold so many sites",
            found=f"{sites} site(s)",
            expected=f"{LEAST_SITES} to {MAX_SITES} sites that train together",
            fix="train without --encrypt, or with --protocol federated or leave_one_site_out and enough sites",
        )
    if min_sites is not None and min_sites < LEAST_SITES:
        raise FedsamError(
            "the sum of one update is that update: a round that needs one only would show it",
            found=f"--min_sites {min_sites}",
            expected=f"{LEAST_SITES} or more",
            fix="raise --min_sites, or train without --encrypt",
        )
