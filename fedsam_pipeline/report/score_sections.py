"""Sections about Dice: tables of sites and classes, box plots, pictures of single cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsam_pipeline.report.case_scores import CaseDice, ScoreSet
from fedsam_pipeline.report.curves import box_figure, quartiles
from fedsam_pipeline.report.markup import Row, Section, dice, figure, heading, note, side_by_side, table, text
from fedsam_pipeline.report.style import svg_bytes

MAX_COLUMNS = 8
"""of a table that fits a page; more classes stand below each other"""


@dataclass(frozen=True)
class CasePicture:
    """A case with the contours of reference and prediction.

    Attributes:
        words: which case this is among the others, such as ``worst``.
        scores: of the case.
        png: the picture.
    """

    words: str
    scores: CaseDice
    png: bytes


def score_section(scores: ScoreSet, *, why_no_cases: str) -> Section:
    """Dice of sites and classes, and the spread of the cases where these are known.

    Args:
        scores: of one evaluation.
        why_no_cases: said in place of the box plots where there is no case.
    """
    summary = scores.summary
    together = summary.get("all_sites")
    if together is None:
        return Section(scores.title, text("Nothing has been scored."))
    parts = [_dice_table(summary), note(f"{summary['rule']}.{_left_out(together)}{_grid(summary)}")]
    if metrics := summary.get("scores"):
        parts += [_metric_table(summary["metrics"], metrics), note(f"Intervals: {summary['intervals']['method']}.")]
    parts.append(heading("Dice of the cases, by site"))
    parts.append(_boxes(scores.cases, list(together["classes"])) if scores.cases else note(why_no_cases))
    return Section(scores.title, "".join(parts))


def picture_section(pictures: Sequence[CasePicture], notes: Sequence[str]) -> Section:
    """Worst and median cases.

    Args:
        pictures: in their order; may be none.
        notes: what has to be known to read them, or why there are none.
    """
    shown = [
        figure(
            each.png,
            "image/png",
            f"{each.scores.case}, {each.scores.site}: {each.words}, Dice {dice(each.scores.mean)} ({_by_class(each.scores.classes)})",
            f"Case {each.scores.case} of {each.scores.site}, {each.words}. Above plain slices of the image, below the same slices with the "
            "contours of each class: solid the reference, dashed the prediction.",
        )
        for each in pictures
    ]
    return Section("Worst and median cases", "".join(note(words) for words in notes) + side_by_side(shown))


def _dice_table(summary: Mapping[str, Any]) -> str:
    together = summary["all_sites"]
    classes, sites = list(together["classes"]), sorted(summary["sites"])
    rows_of = [*((site, summary["sites"][site]) for site in sites), ("mean of sites", together)]
    if len(classes) <= MAX_COLUMNS:
        header: Row = ["site", "cases", *classes, "mean"]
        rows = [
            [name, str(row["num_cases"]), *(dice(row["classes"][each]) for each in classes), dice(row["dice"])] for name, row in rows_of
        ]
        return table("Dice by site and class", header, rows, total=True)
    lines = [
        table("Dice by site", ["site", "cases", "mean"], [[n, str(row["num_cases"]), dice(row["dice"])] for n, row in rows_of], total=True)
    ]
    for start in range(0, len(sites), MAX_COLUMNS - 1):
        part = sites[start : start + MAX_COLUMNS - 1]
        rows = [
            [each, *(dice(summary["sites"][site]["classes"][each]) for site in part), dice(together["classes"][each])] for each in classes
        ]
        lines.append(table("Dice by class and site", ["class", *part, "mean of sites"], rows))
    return "".join(lines)


def _metric_table(definitions: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """All metrics of an evaluation, mean over sites, with intervals."""
    rows = []
    for name, found in scores.items():
        mean = found["all_sites"]["mean"]
        missing = sum(found.get("missing", {}).values())
        number = [_number(mean[key]) for key in ("value", "low", "high")]
        rows.append([name, definitions[name]["unit"] if name in definitions else "", *number, str(missing)])
    return table("All metrics, mean of the sites, with 95 % intervals", ["metric", "unit", "mean", "from", "to", "no value (masks)"], rows)


def _number(found: float | None) -> str:
    return "-" if found is None else f"{found:.4g}"


def _boxes(cases: Sequence[CaseDice], classes: Sequence[str]) -> str:
    shown: list[str | None] = [None, *classes] if len(classes) > 1 else [classes[0]]
    figures = [figure(svg_bytes(box_figure(cases, name)), "image/svg+xml", "", _box_words(cases, name)) for name in shown]
    return side_by_side(figures) + note(
        "Boxes: quartiles; thick lines: medians; whiskers: the farthest case within 1.5 times the box (Tukey, 1977); dots: cases. "
        "Cases without the class in either mask, or of a site that did not annotate it, are left out. The axis need not start at zero."
    )


def _box_words(cases: Sequence[CaseDice], name: str | None) -> str:
    """The box plot for those who do not see it."""
    parts = []
    for site in sorted({each.site for each in cases}):
        found = [each.mean if name is None else each.classes[name] for each in cases if each.site == site]
        known = [value for value in found if value is not None]
        if known:
            low, middle, high = quartiles(known)
            parts.append(f"{site} median {middle:.2f}, quartiles {low:.2f} and {high:.2f}, {len(known)} cases")
        else:
            parts.append(f"{site} no case")
    return f"Box plot of the Dice of {'the mean of all classes' if name is None else name}: {'; '.join(parts)}."


def _by_class(classes: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {dice(found)}" for name, found in classes.items())


def _left_out(together: Mapping[str, Any]) -> str:
    words = ""
    for key, why in (("absent", "Absent in both masks, not counted"), ("excluded", "Not annotated by their site, not scored")):
        counted = ", ".join(f"{name} {count}" for name, count in together.get(key, {}).items() if count)
        words += f" {why} (cases): {counted}." if counted else ""
    return words


def _grid(summary: Mapping[str, Any]) -> str:
    return " On the plan's grid; masks on the images' own grid differ a little." if summary.get("grid") == "plan" else ""
