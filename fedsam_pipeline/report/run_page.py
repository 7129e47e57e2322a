"""The report of a run: which sections stand in it, in which order, and the figures at its top."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsam_pipeline.report.case_scores import ScoreSet
from fedsam_pipeline.report.markup import Section, dice, duration, facts, num_bytes, warning
from fedsam_pipeline.report.page import render_page
from fedsam_pipeline.report.plan_sections import method_section, plan_section
from fedsam_pipeline.report.run_files import RunFiles, checked
from fedsam_pipeline.report.score_sections import CasePicture, picture_section, score_section
from fedsam_pipeline.report.tradeoff import RunCost
from fedsam_pipeline.report.training_sections import (
    communication_section,
    curve_section,
    environment_section,
    privacy_section,
    run_cost,
    tradeoff_section,
)
from fedsam_pipeline.specs.fingerprint import Fingerprint


@dataclass(frozen=True)
class Surroundings:
    """What the page shows beside the run's own folder.

    Attributes:
        scores: the evaluations, the most important first.
        why_no_cases: said where single cases are not known.
        pictures: of single cases; they show patients.
        picture_notes: how the pictures are made, or why there are none.
        others: finished runs of the same plan on the same cases.
        left_out: runs that could not be read, and why.
        fingerprint: that the plan was made of, if it is there.
        why_no_fingerprint: said where it is not.
    """

    scores: Sequence[ScoreSet]
    why_no_cases: str
    pictures: Sequence[CasePicture] = ()
    picture_notes: Sequence[str] = ()
    others: Sequence[RunCost] = ()
    left_out: Sequence[str] = ()
    fingerprint: Fingerprint | None = None
    why_no_fingerprint: str = ""


def run_page(files: RunFiles, around: Surroundings, *, made_with: str) -> str:
    """The page.

    Raises:
        FedsamError: a record of the run has another form than training gives it; names the file.
    """
    makers: list[tuple[str, Callable[[], Section]]] = [
        *(("validation/summary.json", _of_scores(each, around.why_no_cases)) for each in around.scores),
        ("progress.jsonl", lambda: curve_section(files.records)),
        ("communication.json", lambda: tradeoff_section(files, around.others, around.left_out)),
        ("validation/summary.json", lambda: picture_section(around.pictures, around.picture_notes)),
        ("communication.json", lambda: communication_section(files)),
        ("run.json", lambda: privacy_section(files, around.fingerprint, around.why_no_fingerprint)),
        ("plans.json", lambda: plan_section(files.plans)),
        ("run.json", lambda: method_section(files)),
        ("run.json", lambda: environment_section(files)),
    ]
    sections = [checked(files.folder / name, make) for name, make in makers]
    lead = checked(files.folder / "run.json", lambda: Section("", _lead(files, around))).body
    return render_page(files.plans.dataset_name, " · ".join(files.names), lead, sections, made_with=made_with)


def _of_scores(scores: ScoreSet, why_no_cases: str) -> Callable[[], Section]:
    return lambda: score_section(scores, why_no_cases=why_no_cases)


def _lead(files: RunFiles, around: Surroundings) -> str:
    """What a reader wants first."""
    pairs: list[tuple[str, str]] = []
    for scores in around.scores:
        known = {site: row["dice"] for site, row in scores.summary["sites"].items() if row["dice"] is not None}
        if known:
            pairs.append((dice(scores.summary["dice"]), f"{scores.title}, mean of {len(known)} site(s)"))
        if len(known) > 1:
            worst = min(known, key=lambda site: known[site])
            pairs.append((dice(known[worst]), f"{scores.title}, worst site: {worst}"))
    run = files.run
    pairs.append((f"{run['rounds']} x {run['local_steps']}", "rounds x steps a site"))
    if files.exchanges and (cost := run_cost(files)) is not None:
        pairs.append((num_bytes(cost.num_bytes), "sent in all, both directions"))
    if files.exchanges:
        pairs.append((f"{files.manifest.federated_parameters:,}", "parameters that travel, one way"))
    pairs.append((duration(run["seconds"]), "training time"))
    notes = []
    if run["status"] != "done":
        notes.append(f"This training is not done (status: {run['status']}). The figures are those of its finished rounds.")
    if run.get("encoder") == "random":
        notes.append("A control experiment: the image encoder was drawn at random, not pre-trained.")
    if run.get("weights_sha256") == "random":
        notes.append("The base model has no published weights and was drawn at random: good for trying out commands, for nothing else.")
    if around.pictures:
        notes.append("This page shows images of patients and names of cases: it stays where they may be seen.")
    elif any(scores.cases for scores in around.scores):
        notes.append("This page shows scores of single cases: it stays where they may be seen.")
    return facts(pairs) + "".join(warning(words) for words in notes)
