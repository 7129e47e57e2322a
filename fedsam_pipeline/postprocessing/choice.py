"""Which rules are kept: nnU-Net's rule on summed changes of Dice.

nnU-Net (Isensee et al., Nature Methods 2021) applies a rule to the predictions of its cross-validation and keeps it if the mean Dice
improves and no class gets worse; first for all foreground, then class by class, each after what was kept before. All it takes are sums
over cases, so sites need not tell single ones. Cases count equally here, whatever their site.
"""

from collections.abc import Callable, Mapping, Sequence

from fedsam_pipeline.postprocessing.candidates import touched
from fedsam_pipeline.postprocessing.deltas import DeltaSums
from fedsam_pipeline.specs.postprocessing import Decision, MaskRule, SummedDelta

ROUNDING = 1e-9
"""a change of Dice below this is none: the rounding of sums"""

Ask = Callable[[Sequence[MaskRule], Sequence[MaskRule]], DeltaSums]
"""decided rules and candidates to what each candidate changes"""


def choose(
    questions: Sequence[Sequence[MaskRule]], ask: Ask, labels: Mapping[str, int], groups: Mapping[str, Sequence[int]]
) -> tuple[tuple[MaskRule, ...], tuple[Decision, ...]]:
    """Asks one question after the other; each with the rules that were kept so far.

    Args:
        questions: see ``candidates.questions``.
        ask: gives the sums of all sites. Where it has no case for the first question, no other is asked.
        labels: name to value.
        groups: what is scored.

    Returns:
        The rules to apply, in order, and all decisions.
    """
    kept: list[MaskRule] = []
    decisions: list[Decision] = []
    for candidates in questions:
        sums = ask(tuple(kept), candidates)
        if not decisions and not sums.cases:
            break
        made = decide(candidates, sums, labels, groups)
        decisions += made
        kept += [decision.rule for decision in made if decision.kept]
    return tuple(kept), tuple(decisions)


def decide(
    candidates: Sequence[MaskRule], sums: DeltaSums, labels: Mapping[str, int], groups: Mapping[str, Sequence[int]]
) -> list[Decision]:
    """nnU-Net's rule for each candidate. Of several for one class, the one that gains most is kept; of equals the first.

    A rule that can change a score which no site told anything of is not kept: nobody knows whether it drops.
    """
    means = [_mean(sums, row) for row in sums.deltas]
    faults = [_fault(sums, row, touched(rule, labels, groups)) for rule, row in zip(candidates, sums.deltas, strict=True)]
    best: dict[str | None, int] = {}
    for index, (rule, fault) in enumerate(zip(candidates, faults, strict=True)):
        if fault is None and (rule.label not in best or means[index] > means[best[rule.label]]):
            best[rule.label] = index
    result = []
    for index, (rule, row, fault) in enumerate(zip(candidates, sums.deltas, faults, strict=True)):
        kept = best.get(rule.label) == index
        why = fault or ("the mean improves and no class drops" if kept else f"{candidates[best[rule.label]]} gains more")
        classes = {name: SummedDelta(delta_sum=total, num_cases=sums.cases[name]) for name, total in row.items()}
        result.append(Decision(rule=rule, kept=kept, mean_delta=means[index] if row else None, classes=classes, why=why))
    return result


def _mean(sums: DeltaSums, row: Mapping[str, float]) -> float:
    """Mean over cases, then over what is scored; 0 without any."""
    return sum(total / sums.cases[name] for name, total in row.items()) / max(1, len(row))


def _fault(sums: DeltaSums, row: Mapping[str, float], seen: frozenset[str]) -> str | None:
    """Why a rule is not kept; ``None``: nothing speaks against it."""
    if unknown := sorted(seen - sums.cases.keys()):
        return f"no site told anything of {', '.join(unknown)}"
    if dropping := [f"{name} by {-total / sums.cases[name]:.4f}" for name, total in row.items() if total < -ROUNDING]:
        return f"drops {', '.join(dropping)}"
    if _mean(sums, row) <= ROUNDING:
        return "the mean does not improve"
    return None
