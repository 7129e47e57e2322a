"""Choosing postprocessing at the end of a training: the questions, the log, the document."""

import logging
import threading
from typing import Any

from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.flower.postprocessing_query import PostprocessingQuery
from fedsam_pipeline.flower.rounds import RoundPlan
from fedsam_pipeline.flower.simulation import Grid
from fedsam_pipeline.pipeline.train_request import RunSetup
from fedsam_pipeline.postprocessing.candidates import questions
from fedsam_pipeline.postprocessing.choice import choose
from fedsam_pipeline.specs.postprocessing import Decision, Postprocessing

log = logging.getLogger(__name__)


def choose_postprocessing(
    setup: RunSetup, grid: Grid, plan: RoundPlan, heads: AuditHeads, stop: threading.Event
) -> tuple[Postprocessing, list[dict[str, Any]]]:
    """Asks the sites what each rule changes on the masks that they kept of the final evaluation, and decides.

    The same for one site as for many: what a local or centralized run asks never leaves the machine.

    Returns:
        The document, which has no steps where no rule is worth keeping or no site has enough cases; entries for ``communication.json``.

    Raises:
        RunStopped: someone asked the run to stop.
    """
    labels = setup.labels
    query = PostprocessingQuery(grid, plan, setup.validated, heads, stop)
    steps, decisions = choose(
        questions(labels.classes, labels.scored, setup.candidate_volumes.volumes), query.ask, labels.classes, labels.scored
    )
    for decision in decisions:
        log.info("postprocessing: %s", _line(decision))
    quiet = len(setup.site_names) - len(query.told)
    choice = f"chosen from {len(query.told)} of {len(setup.site_names)} sites" if decisions else "not chosen: no site told anything"
    if quiet:
        choice += f"; {quiet} told nothing: fewer patients in validation than its privacy floor, or refused"
    log.info("postprocessing: %s; applied: %s", choice, ", ".join(map(str, steps)) or "nothing")
    document = Postprocessing(
        dataset_name=setup.model.plans.dataset_name,
        plan_sha256=setup.model.plans.sha256(),
        steps=steps,
        decisions=decisions,
        sites=tuple(sorted(query.told)),
        why={"choice": choice, **{f"minimum_volume.{name}": why for name, why in setup.candidate_volumes.why.items()}},
    )
    return document, query.traffic


def _line(decision: Decision) -> str:
    sums = ", ".join(f"{name} {found.delta_sum:+.4f} over {found.num_cases} cases" for name, found in decision.classes.items())
    return f"{decision.rule}: {'kept' if decision.kept else 'not kept'}, {decision.why} (summed Dice: {sums or 'nothing'})"
