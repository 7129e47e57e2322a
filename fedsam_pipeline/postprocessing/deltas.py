"""What rules do to the Dice of a case, and the sums that a site may tell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.evaluation.metrics import counts, dice_from_counts
from fedsam_pipeline.postprocessing.apply import Labels, apply_rules
from fedsam_pipeline.specs.postprocessing import MaskRule


def case_deltas(
    reference: Labels,
    mask: Labels,
    spacing: Sequence[float],
    decided: Sequence[MaskRule],
    candidates: Sequence[MaskRule],
    labels: Mapping[str, int],
    groups: Sequence[Sequence[int]],
    ignore: int,
) -> NDArray[np.float64]:
    """The change of Dice by each candidate, alone, after the decided rules.

    A class that is absent in both masks has Dice 1 here: where the reference has none, the last false positive that a rule removes counts
    as a gain of 1.

    Args:
        reference: (Z, Y, X) class numbers; ``ignore`` where nobody annotated.
        mask: the prediction.
        spacing: mm along the same axes.
        decided: rules that apply before.
        candidates: N rules.
        labels: name to value.
        groups: G, the values that are scored as one each.
        ignore: of the reference.

    Returns:
        (N, G).
    """
    before = apply_rules(mask, spacing, decided, labels)
    table = counts(reference, before, len(labels), groups=groups, ignore=ignore)
    result = np.zeros((len(candidates), len(groups)))
    for row, rule in zip(result, candidates, strict=True):
        after = apply_rules(before, spacing, [rule], labels)
        if after is before:
            continue
        changed = after != before  # counts add up over voxels, so these alone need counting
        old, new = (counts(reference[changed], each[changed], len(labels), groups=groups, ignore=ignore) for each in (before, after))
        row[...] = _dice(table - old + new) - _dice(table)
    return result


def _dice(table: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.nan_to_num(dice_from_counts(table), nan=1.0)


@dataclass(frozen=True)
class DeltaSums:
    """Sums over cases, of one site or of several: all that the choice needs.

    Attributes:
        cases: scored name to the number of cases; a name without cases is left out.
        deltas: by candidate, name to the summed change of Dice; the names of ``cases``.
    """

    cases: Mapping[str, int]
    deltas: tuple[Mapping[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"cases": dict(self.cases), "deltas": [dict(row) for row in self.deltas]}

    @classmethod
    def from_answer(cls, value: Any, *, names: Sequence[str], candidates: int, most_cases: int) -> Self:
        """Reads what another machine says.

        Args:
            value: parsed JSON.
            names: all scored names.
            candidates: the number of rules that were asked for.
            most_cases: that the site can have.

        Raises:
            ValueError: says what is wrong: other keys, names or numbers of rules; a number of cases that cannot be; a sum that is not
                finite or larger than its cases allow.
        """
        if not isinstance(value, dict) or value.keys() != {"cases", "deltas"}:
            raise ValueError("it is no answer of cases and deltas")
        cases, deltas = value["cases"], value["deltas"]
        if not isinstance(cases, dict) or not cases.keys() <= set(names):
            raise ValueError("it counts cases of other classes than asked for")
        for name, number in cases.items():
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most_cases:
                raise ValueError(f"{number!r:.40} cases of {name}, the site has {most_cases}")
        if not isinstance(deltas, list) or len(deltas) != candidates:
            raise ValueError(f"it does not answer {candidates} rules")
        for row in deltas:
            if not isinstance(row, dict) or row.keys() != cases.keys():
                raise ValueError("it sums over other classes than it counts")
            for name, total in row.items():
                number_like = isinstance(total, int | float) and not isinstance(total, bool)
                if not number_like or not abs(total) <= cases[name]:  # NaN is not below anything
                    raise ValueError(f"a sum of {total!r:.40} over {cases[name]} cases of {name}")
        return cls(cases, tuple({name: float(total) for name, total in row.items()} for row in deltas))


def sum_cases(deltas: Sequence[NDArray[np.float64]], known: Sequence[NDArray[np.bool_]], names: Sequence[str]) -> DeltaSums:
    """Sums over the cases of a site.

    Args:
        deltas: (N, G) of each case, at least one.
        known: (G,) of each case: what its owner annotated; the rest does not count.
        names: G.
    """
    table, counted = np.stack(deltas), np.stack(known)
    cases = {name: int(counted[:, column].sum()) for column, name in enumerate(names) if counted[:, column].any()}
    return DeltaSums(
        cases,
        tuple(
            {name: math.fsum(table[counted[:, column], row, column]) for column, name in enumerate(names) if name in cases}
            for row in range(table.shape[1])
        ),
    )


def add_sums(parts: Sequence[DeltaSums], candidates: int) -> DeltaSums:
    """Sums of several sites, added exactly (``math.fsum``), so that their order does not matter."""
    names = list(dict.fromkeys(name for part in parts for name in part.cases))
    return DeltaSums(
        {name: sum(part.cases.get(name, 0) for part in parts) for name in names},
        tuple({name: math.fsum(part.deltas[row].get(name, 0.0) for part in parts) for name in names} for row in range(candidates)),
    )
