"""The plan for people: each value with its reason."""

import textwrap
from typing import Any

from fedsam_pipeline.planning.decision import mm
from fedsam_pipeline.planning.geometry_rules import triplanar
from fedsam_pipeline.planning.thresholds import Thresholds, load_thresholds
from fedsam_pipeline.specs.plans import ChannelPlan, InputTerm, Plans


def plan_table(plans: Plans, width: int = 120, thresholds: Thresholds | None = None) -> str:
    """A text table of all planned values, in the plan's order, reasons wrapped to ``width`` columns; last, what follows from them.

    Args:
        plans: the plan.
        width: columns.
        thresholds: ``None`` takes ``plans/rules.toml``.
    """
    rows = [(name, _shown(name, value), plans.why.get(name, "no reason given")) for name, value in planned_values(plans).items()]
    offer = triplanar(plans.target_spacing, (thresholds or load_thresholds()).triplanar)
    rows.append(("configurations (-c)", "main, triplanar" if offer.value else "main", offer.why))
    name_width = max(len(name) for name, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    reason_width = max(30, width - name_width - value_width - 4)
    lines = [f"plan {plans.plans_name} of {plans.dataset_name} for {plans.base_model}"]
    for name, value, why in rows:
        first, *rest = textwrap.wrap(why, reason_width)
        lines.append(f"{name:<{name_width}}  {value:<{value_width}}  {first}")
        lines += [" " * (name_width + value_width + 4) + line for line in rest]
    return "\n".join(lines)


NOT_PLANNED = ("schema_version", "plans_name", "dataset_name", "base_model", "labels", "fingerprint_sha256", "why")
"""keys of a plan that name things; all the others are decided by a rule"""


BY_HAND = "prompts.self_prompt"
"""the one key that no rule decides"""


def planned_values(plans: Plans) -> dict[str, Any]:
    """Dotted name to value of everything that a rule decided: what ``plans.why`` explains."""
    values: dict[str, Any] = {}
    for name in type(plans).model_fields:
        value = getattr(plans, name)
        if name == "channels":
            values |= {f"channels.{number}": channel for number, channel in enumerate(value)}
        elif name in ("resampling", "prompts", "training"):
            values |= {f"{name}.{key}": getattr(value, key) for key in type(value).model_fields if f"{name}.{key}" != BY_HAND}
        elif name not in NOT_PLANNED:
            values[name] = value
    return values


def _shown(name: str, value: Any) -> str:
    if isinstance(value, ChannelPlan):
        return value.scheme
    if name == "target_spacing":
        return mm(value)
    if name == "slice_axis":
        return f"{value} ({'zyx'[value]})"
    if name == "window":
        return f"{value[0]} x {value[1]}"
    if name == "encoder_inputs":
        return " | ".join(_terms(terms) for terms in value)
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _terms(terms: tuple[InputTerm, ...]) -> str:
    """``c0`` for channel 0 of the slice itself, ``c0-1`` of the slice before; several are averaged."""
    return "+".join(f"c{term.channel}{term.offset:+d}" if term.offset else f"c{term.channel}" for term in terms)
