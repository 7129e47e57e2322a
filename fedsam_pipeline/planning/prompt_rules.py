"""Rules on prompts: whether a model is trained to take any, which, how inexact, and how often it must do without."""

from typing import Literal

from fedsam_pipeline.planning.decision import Decision
from fedsam_pipeline.planning.thresholds import PromptRules
from fedsam_pipeline.specs.plans import PromptPlan


def prompts(extent: float | None, field_of_view: float, objects: float | None, rules: PromptRules) -> tuple[PromptPlan, dict[str, str]]:
    """Prompt settings, with a reason for each key.

    Args:
        extent: median in-plane extent of an object, mm; ``None`` where unknown.
        field_of_view: longer side of the median slice, mm.
        objects: median number of objects (connected components) of a class in a case; ``None`` where unknown.
        rules: thresholds.
    """
    share = 1.0 if extent is None else min(1.0, extent / field_of_view)
    mode, why = prompt_mode(share, objects, rules)
    unused = "; used only where prompts are switched on" if mode == "auto" else ""
    known = "unknown extent of objects" if extent is None else f"median in-plane extent of objects, {extent:.4g} mm"
    low, high = rules.dropout
    dropout = low + (high - low) * share
    plan = PromptPlan(mode=mode, jitter_mm=0.0 if extent is None else rules.jitter_share * extent, dropout=dropout)
    return plan, {
        "mode": why,
        "jitter_mm": f"{100 * rules.jitter_share:g} % of the {known}{unused}",
        "dropout": f"objects span {100 * share:.3g} % of the slice, between {low:g} for tiny ones and {high:g} for ones that fill it: so "
        f"often a slab goes without the prompts of a class, which trains prediction without prompts{unused}",
    }


def prompt_mode(share: float, objects: float | None, rules: PromptRules) -> Decision[Literal["auto", "box", "point"]]:
    """Whether to train with prompts besides working without.

    Args:
        share: of the slice's longer side that the median object spans.
        objects: median number of objects of a class in a case; ``None`` where unknown.
        rules: thresholds.
    """
    if rules.mode != "rule":
        return Decision(rules.mode, "set in plans/rules.toml")
    if objects is not None and objects >= rules.many_objects:
        return Decision("point", f"{objects:.3g} objects of a class in the median case, at least {rules.many_objects}: one point for each")
    if share < rules.small_object_share:
        return Decision(
            "box", f"objects span {100 * share:.3g} % of the slice, less than {100 * rules.small_object_share:g} %: boxes help to find them"
        )
    return Decision(
        "auto", f"objects span {100 * share:.3g} % of the slice: every class has its own mask token and is found without prompts"
    )
