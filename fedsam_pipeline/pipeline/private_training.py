"""From the flags of differential privacy to a budget, with all that excludes it refused before anything is trained."""

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.strategy_settings import streams
from fedsam_pipeline.flower.private_rounds import noise_multiplier
from fedsam_pipeline.specs.privacy_budget import PrivacyBudget
from fedsam_pipeline.specs.recipe import AggregationRecipe

FLAGS = ("--dp_epsilon", "--dp_delta", "--dp_clip")


def privacy_budget(
    flags: tuple[float | None, float | None, float | None], aggregation: AggregationRecipe, *, rounds: int, sites: int, encrypted: bool
) -> PrivacyBudget | None:
    """The budget, or ``None`` without any of the flags.

    Args:
        flags: values of ``FLAGS``.
        aggregation: of the run.
        rounds: that the budget is for.
        sites: whose updates are aggregated.
        encrypted: whether the server sees their sum alone.

    Raises:
        FedsamError: a flag is missing, a value means nothing, or the way of aggregation has no bound on what one site can change.
    """
    epsilon, delta, clip = flags
    if epsilon is None and delta is None and clip is None:
        return None
    if epsilon is None or delta is None or clip is None:
        raise FedsamError(
            "differential privacy needs three numbers",
            found=", ".join(flag for flag, value in zip(FLAGS, flags, strict=True) if value is not None),
            expected=f"{FLAGS[0]} and {FLAGS[1]} for the budget, {FLAGS[2]} for the largest norm of a site's update",
            fix="give all three; docs/privacy.md says how to choose them",
        )
    if sites < 2:
        raise FedsamError(
            "differential privacy of sites needs several sites whose updates are aggregated",
            found=f"{sites} site",
            expected="two or more",
            fix="leave the --dp_ flags out: where one site trains, nothing is aggregated and nothing leaves it",
        )
    if encrypted:
        raise FedsamError(
            "the server cannot clip updates that it cannot see",
            found="--encrypt with --dp_epsilon",
            expected="one of the two: who must not see what, docs/privacy.md has the table",
            fix="leave --encrypt out, or the --dp_ flags",
        )
    if not 0 < delta < 1 / sites:
        raise FedsamError(
            "this delta allows a whole site to be given away",
            found=f"{FLAGS[1]} {delta:g}",
            expected=f"above 0 and below 1/{sites}, the share of one site",
            fix="lower it; 1e-5 is usual",
        )
    if not streams(aggregation.strategy, aggregation.lora_method):
        raise FedsamError(
            f"{aggregation.lora_method or aggregation.strategy} has no bound on what one site can change",
            found=f"differential privacy with {aggregation.strategy}, LoRA method {aggregation.lora_method or 'none'}",
            expected="a mean of the sites' updates: fedavg, fedprox, fedavgm, fedadam or fedyogi",
            fix="use --strategy fedavg --lora_method none, or leave the --dp_ flags out",
        )
    if aggregation.lora_method in ("ffa", "rolora"):
        raise FedsamError(
            f"{aggregation.lora_method} keeps factors as they are, and noise would change them",
            found=f"differential privacy with LoRA method {aggregation.lora_method}",
            expected="no LoRA method, or naive",
            fix="use --lora_method none, or a recipe that neither trains nor sends lora_A (ffa_lora)",
        )
    if aggregation.weighting != "equal":
        raise FedsamError(
            "with differential privacy every site weighs the same",
            found=f"weighting {aggregation.weighting}",
            expected="equal: what one site can change must not depend on what it says of itself",
            fix="leave --weighting out, or --weighting equal",
        )
    budget = PrivacyBudget(epsilon, delta, clip)
    noise_multiplier(budget, rounds, sites)  # there is one
    return budget
