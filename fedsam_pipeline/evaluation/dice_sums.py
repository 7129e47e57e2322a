"""Dice as sums over cases: what a site may tell of several configurations, and what is made of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class Cell(NamedTuple):
    """Summed Dice of a class, and the number of cases in which it has one."""

    total: float
    cases: int


@dataclass(frozen=True)
class DiceSums:
    """Of one site, or of a part of its cases.

    Attributes:
        cells: configuration to class to its sum; of the same classes for all. A class without any case is left out.
    """

    cells: Mapping[str, Mapping[str, Cell]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Those that something is told of."""
        return tuple(next(iter(self.cells.values()), {}))

    @classmethod
    def of_cases(cls, dice: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> Self:
        """Sums over cases.

        Args:
            dice: configuration to (N, K) of the same N cases; NaN where a class is absent in both masks, or was not annotated.
            names: K.
        """
        cells: dict[str, dict[str, Cell]] = {}
        for configuration, table in dice.items():
            columns = [column[~np.isnan(column)].tolist() for column in table.T]
            cells[configuration] = {name: Cell(math.fsum(values), len(values)) for name, values in zip(names, columns, strict=True)}
        return cls(cells).released(1)

    def released(self, floor: int) -> Self:
        """Without the classes in which some configuration has a Dice in fewer cases than ``floor``."""
        kept = [name for name in self.classes if all(row[name].cases >= floor for row in self.cells.values())]
        return type(self)({each: {name: row[name] for name in kept} for each, row in self.cells.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON values: configuration to class to ``[sum, cases]``."""
        return {each: {name: list(cell) for name, cell in row.items()} for each, row in self.cells.items()}

    @classmethod
    def from_answer(cls, value: Any, *, configurations: Sequence[str], names: Sequence[str], most_cases: int) -> Self:
        """Reads what another machine, or a file, says.

        Args:
            value: parsed JSON.
            configurations: those that were asked for.
            names: all scored classes.
            most_cases: that there can be.

        Raises:
            ValueError: says what is wrong: other configurations or classes; a number of cases that cannot be; a sum that is not finite,
                negative, or more than its cases allow.
        """
        if not isinstance(value, dict) or value.keys() != set(configurations):
            raise ValueError("it does not answer the configurations that were asked for")
        classes = next(iter(value.values()))
        for row in value.values():
            if not isinstance(row, dict) or row.keys() != classes.keys() or not row.keys() <= set(names):
                raise ValueError("it tells of other classes than asked for")
            for name, cell in row.items():
                total, cases = cell if isinstance(cell, list) and len(cell) == 2 else (None, None)
                if isinstance(cases, bool) or not isinstance(cases, int) or not 1 <= cases <= most_cases:
                    raise ValueError(f"{cases!r:.40} cases of {name}, there are {most_cases}")
                if isinstance(total, bool) or not isinstance(total, int | float) or not 0 <= total <= cases:
                    raise ValueError(f"a sum of {total!r:.40} over {cases} cases of {name}")
        return cls({each: {name: Cell(float(value[each][name][0]), value[each][name][1]) for name in classes} for each in configurations})


def add_sums(parts: Sequence[DiceSums]) -> DiceSums:
    """Sums of several parts of a site's cases, such as folds; at least one, of the same configurations.

    Exact (``math.fsum``), so the order does not matter. A class may be absent in a part.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.classes))

    def cell(configuration: str, name: str) -> Cell:
        found = [part.cells[configuration][name] for part in parts if name in part.cells[configuration]]
        return Cell(math.fsum(each.total for each in found), sum(each.cases for each in found))

    return DiceSums({each: {name: cell(each, name) for name in names} for each in parts[0].cells})


@dataclass(frozen=True)
class ConfigurationDice:
    """One configuration over all sites: means over cases, then classes, then sites without weights (``metrics.RULE``).

    Attributes:
        dice: the mean of ``sites``.
        sites: site to the mean of its classes.
        classes: class to the mean of the sites that told of it.
    """

    dice: float
    sites: Mapping[str, float]
    classes: Mapping[str, float]


def federated_dice(sites: Mapping[str, DiceSums]) -> dict[str, ConfigurationDice]:
    """Configuration to its Dice, the best first; equals stay in their order.

    Args:
        sites: what they told, of the same configurations; those that told of no class are left out, and at least one is not.
    """
    ordered = {site: sites[site] for site in sorted(sites) if sites[site].classes}
    found = {}
    for configuration in next(iter(ordered.values())).cells:
        means = {
            site: {name: cell.total / cell.cases for name, cell in part.cells[configuration].items()} for site, part in ordered.items()
        }
        by_site = {site: _mean(list(row.values())) for site, row in means.items()}
        names = dict.fromkeys(name for row in means.values() for name in row)
        classes = {name: _mean([row[name] for row in means.values() if name in row]) for name in names}
        found[configuration] = ConfigurationDice(_mean(list(by_site.values())), by_site, classes)
    return dict(sorted(found.items(), key=lambda item: -item[1].dice))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
