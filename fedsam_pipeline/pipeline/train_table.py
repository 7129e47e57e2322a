"""The table that a training command ends with."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsam_pipeline.evaluation.summary import SiteDice, combine_sites, format_table
from fedsam_pipeline.pipeline.run_timing import timing_line


def result_table(states: Sequence[Mapping[str, Any]]) -> str:
    """Final Dice of one run, or of the runs of a ``local`` protocol side by side, each site scored by its own model; what federation cost.

    Args:
        states: the ``run.json`` of each run.
    """
    finals = [state["final"] for state in states if state.get("final")]
    sites = _by_site(finals)
    if not sites:
        return "\n".join(["no validation case in this fold: nothing to score", *_timing(states)])
    parts = [_table(sites, finals[0]["rule"])]
    if personal := _by_site([final["personal"] for final in finals if "personal" in final]):
        parts = ["the model that all sites share", *parts, "each site's own model", _table(personal, finals[0]["rule"])]
    seconds = sum(float(state["seconds"]) for state in states)
    return "\n".join([*parts, f"validation volumes on the plan's grid; {seconds / 60:.1f} minutes", *_timing(states)])


def _timing(states: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [(state, timing) for state in states if (timing := state.get("timing"))]  # runs of older versions have none
    return [
        (f"{state['held_out'] or state['sites'][0]}: " if len(states) > 1 else "") + timing_line(timing, state["workers"])
        for state, timing in known
    ]


def _by_site(finals: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {name: row for final in finals for name, row in final["sites"].items()}


def _table(sites: Mapping[str, Mapping[str, Any]], rule: str) -> str:
    names = list(next(iter(sites.values()))["classes"])
    together = combine_sites({name: SiteDice.from_dict(row, names) for name, row in sites.items()})
    labels = {name: index for index, name in enumerate(names, start=1)}
    return format_table({"labels": labels, "sites": sites, "all_sites": together.to_dict(names), "rule": rule})
