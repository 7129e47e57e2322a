"""What speaks against one predicted case: measures beside their limits, and words for those beyond."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.inference.agreement import Agreement, CaseAgreement
from fedsam_pipeline.inference.coverage_check import ImageView, beyond
from fedsam_pipeline.planning.thresholds import QualityRules
from fedsam_pipeline.specs.coverage import Coverage, Interval
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.quality import QualityRow

AXES = "zyx"


class Finding(NamedTuple):
    """One measure: ``severity`` is 1 at its limit and larger beyond, and ``words`` say what was found and what was expected."""

    severity: float
    words: str


def judge_case(
    case: str,
    mask_name: str,
    view: ImageView,
    mask: NDArray[Any],
    agreement: CaseAgreement,
    *,
    plans: Plans,
    coverage: Coverage | None,
    rules: QualityRules,
) -> QualityRow:
    """The row of one case.

    Args:
        case: its name.
        mask_name: of the mask's file.
        view: of the image.
        mask: (Z, Y, X) on the image's own grid.
        agreement: after all slices have come.
        plans: of the model.
        coverage: of the plan; ``None``: not known, and nothing is said about the image.
        rules: the limits.
    """
    outside = view.outside_shares(mask)
    foreground = int(np.count_nonzero(mask))
    folds, mirrors = (_by_class(each, plans) for each in (agreement.folds, agreement.mirrors))
    found = [
        *_disagreements("folds", folds, rules.min_agreement),
        *_disagreements("mirrored images", mirrors, rules.min_agreement),
    ]
    if coverage is not None:
        found += _geometry("spacing", view.spacing, coverage.spacing, rules.spacing_margin)
        found += _geometry("extent", view.extent, coverage.extent, rules.extent_margin)
        found += _intensities(outside, coverage, rules.max_outside)
        found += _emptiness(foreground, coverage, rules)
    found.sort(key=lambda finding: -finding.severity)
    return QualityRow(
        case=case,
        mask=mask_name,
        severity=max((finding.severity for finding in found), default=0.0),
        flags=tuple(finding.words for finding in found if finding.severity > 1),
        spacing=view.spacing,
        extent=view.extent,
        foreground_voxels=foreground,
        outside=outside,
        folds_dice=folds,
        mirrors_dice=mirrors,
    )


def _by_class(agreement: Agreement | None, plans: Plans) -> dict[str, float | None]:
    return {} if agreement is None else dict(zip(plans.foreground_names, agreement.dice(), strict=True))


def _disagreements(who: str, dice: dict[str, float | None], limit: float) -> Iterator[Finding]:
    for name, value in dice.items():
        if value is not None:
            yield Finding((1 - value) / (1 - limit), f"{who} agree on {name} at a mean Dice of {value:.2f} only, below {limit:g}")


def _geometry(what: str, lengths: Iterable[float], covered: Iterable[Interval], margin: float) -> Iterator[Finding]:
    """A length within its range is no finding at all; beyond it, its factor over that of the margin."""
    for axis, length, (low, high) in zip(AXES, lengths, covered, strict=True):
        factor = beyond(length, (low, high))
        yield Finding(factor / (1 + margin), f"{what} {axis} {length:.3g} mm, planned for {_range_text(low, high)} mm")


def _intensities(outside: dict[str, float | None], coverage: Coverage, limit: float) -> Iterator[Finding]:
    for channel in coverage.channels:
        share = outside[channel.name]
        if share is not None:
            spans = " or ".join(_range_text(low, high) for low, high in channel.spans)
            yield Finding(share / limit, f"{share:.0%} of the foreground's {channel.name} intensities are not of the planned {spans}")


def _emptiness(foreground: int, coverage: Coverage, rules: QualityRules) -> Iterator[Finding]:
    """An empty mask weighs as much as a disagreement of everybody with everybody."""
    if not foreground and coverage.foreground_share >= rules.usual_foreground:
        words = f"no foreground found; {coverage.foreground_share:.0%} of the planned cases hold some"
        yield Finding(1 / (1 - rules.min_agreement), words)


def _range_text(low: float, high: float) -> str:
    """Three digits are enough to compare; one number where both ends look alike."""
    first, last = (f"{float(f'{end:.3g}'):.9g}" for end in (low, high))
    return first if first == last else f"{first} to {last}"
