"""Dice as the report shows it: of sites, and of single cases where these are on this machine. Read from what other floors wrote."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsam_pipeline.evaluation.metrics import dice_from_counts


@dataclass(frozen=True)
class CaseDice:
    """One scored case.

    Attributes:
        case, site: names.
        classes: class, or region, to its Dice; ``None`` where it is absent in both masks or the site did not annotate it.
    """

    case: str
    site: str
    classes: Mapping[str, float | None]

    @property
    def mean(self) -> float | None:
        """Over the classes that have a Dice."""
        known = [dice for dice in self.classes.values() if dice is not None]
        return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class ScoreSet:
    """One evaluation of one model.

    Attributes:
        title: which cases, which model.
        summary: ``rule``, ``dice``, ``sites`` and ``all_sites`` as in ``validation/summary.json``; other keys are ignored.
        cases: the single cases; empty where they are not on this machine, or not to be shown.
    """

    title: str
    summary: Mapping[str, Any]
    cases: tuple[CaseDice, ...] = ()

    def without_cases(self) -> "ScoreSet":
        """What may stand in a page that leaves the site."""
        return replace(self, cases=())


def site_cases(documents: Iterable[Mapping[str, Any]], names: Sequence[str]) -> tuple[CaseDice, ...]:
    """The cases of ``sites/SITE/validation.json``, sorted by site and name.

    Args:
        documents: contents of these files.
        names: of what was scored, in the order of ``tp_fp_fn``.
    """
    found = [CaseDice(row["case"], row["site"], _dice_of(row["tp_fp_fn"], names)) for document in documents for row in document["cases"]]
    return tuple(sorted(found, key=lambda each: (each.site, each.case)))


def evaluated(title: str, summary: Mapping[str, Any]) -> ScoreSet:
    """From the ``summary.json`` of ``fedsam_evaluate``."""
    keys = {name: str(key) for name, key in summary["labels"].items()}
    cases = [
        CaseDice(row["case"], row["site"], {name: row["metrics"][key]["Dice"] for name, key in keys.items()})
        for row in summary["metric_per_case"]
    ]
    return ScoreSet(title, summary, tuple(cases))


def choose_cases(cases: Sequence[CaseDice], number: int = 1) -> list[tuple[str, CaseDice]]:
    """The worst cases by their mean Dice, and those in the middle, each with a word that says which.

    Args:
        cases: of one evaluation. Those without any Dice are left out.
        number: how many of either kind; fewer where there are not so many cases. No case comes twice.
    """
    scored = sorted((each.mean, each.case, each) for each in cases if each.mean is not None)
    ordered = [each for _, _, each in scored]
    worst = ordered[:number]
    middle = (len(ordered) - 1) / 2
    by_distance = sorted(range(len(ordered)), key=lambda position: (abs(position - middle), position))
    median = sorted(position for position in by_distance[:number] if position >= len(worst))
    many = len(ordered)
    chosen = [("worst" if rank == 1 else f"{rank}. worst", each) for rank, each in enumerate(worst, start=1)]
    return [
        *chosen,
        *(("median" if number == 1 else f"near the median, {position + 1}. of {many}", ordered[position]) for position in median),
    ]


def _dice_of(table: Sequence[Sequence[int] | None], names: Sequence[str]) -> dict[str, float | None]:
    result: dict[str, float | None] = {}
    for name, row in zip(names, table, strict=True):
        dice = float("nan") if row is None else float(dice_from_counts(np.asarray(row)[None])[0])
        result[name] = None if np.isnan(dice) else dice
    return result
