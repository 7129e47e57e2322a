"""Rules on prompts: whether a model is trained to take any, which, how inexact, and how often it must do without."""

from typing import Literal

from fedsam_pipeline.planning.decision import Decision
from fedsam_pipeline.planning.thresholds import PromptRules
from fedsam_pipeline.specs.plans import PromptPlan


def prompts(
    smallest: tuple[str, float] | None, field_of_view: float, objects: float | None, rules: PromptRules
) -> tuple[PromptPlan, dict[str, str]]:
    """Prompt settings, with a reason for each key. The class with the smallest objects decides: it is the hardest to find.

    Args:
        smallest: that class and the median in-plane side of its objects, mm; ``None`` where unknown.
        field_of_view: longer side of the median slice, mm.
        objects: median number of objects in a case, of the class with the most; ``None`` where unknown.
        rules: thresholds.
    """
    name, side = smallest or ("", field_of_view)
    share = min(1.0, side / field_of_view)
    found = f"objects of {name}, the smallest, span {100 * share:.3g} % of the slice" if name else "no object is known"
    mode, why = prompt_mode(share, objects, found, rules)
    unused = "; used only where prompts are switched on" if mode == "auto" else ""
    low, high = rules.dropout
    plan = PromptPlan(mode=mode, jitter_mm=rules.jitter_share * side if name else 0.0, dropout=low + (high - low) * share)
    return plan, {
        "mode": why,
        "jitter_mm": f"{100 * rules.jitter_share:g} % of {f'the side of {name}, {side:.4g} mm' if name else 'an unknown side'}{unused}",
        "dropout": f"{found}, between {low:g} for tiny ones and {high:g} for ones that fill it: so often a slab goes without the prompts "
        f"of a class, which trains prediction without prompts{unused}",
    }


def prompt_mode(share: float, objects: float | None, found: str, rules: PromptRules) -> Decision[Literal["auto", "box", "point"]]:
    """Whether to train with prompts besides working without.

    Args:
        share: of the slice's longer side that the smallest class's median object spans.
        objects: median number of objects in a case, of the class with the most; ``None`` where unknown.
        found: the share in words.
        rules: thresholds.
    """
    if rules.mode != "rule":
        return Decision(rules.mode, "set in plans/rules.toml")
    if objects is not None and objects >= rules.many_objects:
        return Decision("point", f"{objects:.3g} objects of a class in the median case, at least {rules.many_objects}: one point for each")
    if share < rules.small_object_share:
        return Decision("box", f"{found}, less than {100 * rules.small_object_share:g} %: boxes help to find them")
    return Decision("auto", f"{found}: every class has its own mask token and is found without prompts")
