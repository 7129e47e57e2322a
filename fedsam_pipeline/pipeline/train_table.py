"""The table that a training command ends with."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsam_pipeline.evaluation.summary import SiteDice, combine_sites, format_table


def result_table(states: Sequence[Mapping[str, Any]]) -> str:
    """Final Dice of one run, or of the runs of a ``local`` protocol side by side, each site scored by its own model.

    Args:
        states: the ``run.json`` of each run.
    """
    finals = [state["final"] for state in states if state.get("final")]
    sites: dict[str, Mapping[str, Any]] = {name: row for final in finals for name, row in final["sites"].items()}
    if not sites:
        return "no validation case in this fold: nothing to score"
    names = list(next(iter(sites.values()))["classes"])
    together = combine_sites({name: SiteDice.from_dict(row, names) for name, row in sites.items()})
    summary = {
        "labels": {name: index for index, name in enumerate(names, start=1)},
        "sites": sites,
        "all_sites": together.to_dict(names),
        "rule": finals[0]["rule"],
    }
    seconds = sum(float(state["seconds"]) for state in states)
    return f"{format_table(summary)}\nvalidation volumes on the plan's grid; {seconds / 60:.1f} minutes"
