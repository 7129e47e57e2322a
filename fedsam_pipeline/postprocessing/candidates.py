"""Which rules are asked for, and in which order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsam_pipeline.planning.grids import log_value, median
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.postprocessing import MaskRule


@dataclass(frozen=True)
class CandidateVolumes:
    """Smallest volumes of components to try, mm3, by class, and where they come from."""

    volumes: Mapping[str, tuple[float, ...]]
    why: Mapping[str, str]


def candidate_volumes(fingerprint: Fingerprint, shares: Sequence[float]) -> CandidateVolumes:
    """Shares of a class's usual object: its median volume in a case, divided by its median number of components.

    In mm3, so that a rule means the same on the plan's grid, where it is chosen, and on an image's own. Two significant digits. A class
    that the fingerprint tells nothing of has none.
    """
    volumes, why = {}, {}
    for name, measured in sorted(fingerprint.classes.items()):
        volume, components = log_value(median(measured.volume_mm3)), max(1.0, median(measured.components))
        usual = volume / components
        volumes[name] = tuple(sorted({float(f"{share * usual:.2g}") for share in shares}))
        why[name] = (
            f"{', '.join(f'{each:g}' for each in volumes[name])} mm3: {', '.join(f'{100 * share:g}' for share in sorted(shares))} % of the "
            f"usual object of {_short(usual)} mm3 (medians of a case: {_short(volume)} mm3, components: {components:g})"
        )
    return CandidateVolumes(volumes, why)


def _short(volume: float) -> str:
    return f"{float(f'{volume:.3g}'):g}"


def questions(
    labels: Mapping[str, int], groups: Mapping[str, Sequence[int]], volumes: Mapping[str, Sequence[float]]
) -> tuple[tuple[MaskRule, ...], ...]:
    """The rules to ask for, in this order; those of one question are judged side by side.

    Largest component of all foreground, then of each class; minimum volumes (alternatives for one class); holes. Rules of different
    classes stand in one question where no score sees both, which is always so where the classes themselves are scored: then answering
    them at once is answering them one after the other. A single class needs no rule for all foreground.

    Args:
        labels: name to value, background 0.
        groups: what is scored: name to the values it unites.
        volumes: class to smallest volumes, mm3.
    """
    names = [name for name, value in sorted(labels.items(), key=lambda item: item[1]) if value]
    asked: list[tuple[MaskRule, ...]] = [(MaskRule(kind="largest_component"),)] if len(names) > 1 else []
    kinds: tuple[Literal["largest_component", "minimum_volume", "fill_holes"], ...] = ("largest_component", "minimum_volume", "fill_holes")
    for kind in kinds:
        by_class = {
            name: [MaskRule(kind=kind, label=name, min_volume_mm3=each) for each in volumes.get(name, ())]
            if kind == "minimum_volume"
            else [MaskRule(kind=kind, label=name)]
            for name in names
        }
        for together in _apart(names, labels, groups):
            if rules := tuple(rule for name in together for rule in by_class[name]):
                asked.append(rules)
    return tuple(asked)


def touched(rule: MaskRule, labels: Mapping[str, int], groups: Mapping[str, Sequence[int]]) -> frozenset[str]:
    """The scores that a rule can change."""
    return frozenset(name for name, values in groups.items() if rule.label is None or labels[rule.label] in values)


def _apart(names: Iterable[str], labels: Mapping[str, int], groups: Mapping[str, Sequence[int]]) -> Iterator[list[str]]:
    """Classes in their order, neighbours together as long as no score sees two of them."""
    together: list[str] = []
    seen: frozenset[str] = frozenset()
    for name in names:
        scores = touched(MaskRule(kind="largest_component", label=name), labels, groups)
        if seen & scores:
            yield together
            together, seen = [], frozenset()
        together.append(name)
        seen |= scores
    if together:
        yield together
