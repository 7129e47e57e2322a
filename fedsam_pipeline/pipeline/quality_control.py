"""Quality control while images are predicted: looks at each image, watches its members agree, keeps a row, warns."""

import logging
from typing import Any

from numpy.typing import NDArray

from fedsam_pipeline.dataset.volume import Volume
from fedsam_pipeline.inference.agreement import CaseAgreement
from fedsam_pipeline.inference.coverage_check import ImageView, view_image
from fedsam_pipeline.inference.inputs import InputCase
from fedsam_pipeline.inference.quality import judge_case
from fedsam_pipeline.pipeline.quality_files import row_path
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.coverage import Coverage
from fedsam_pipeline.specs.plans import Plans

log = logging.getLogger(__name__)
UNKNOWN = "the model's folder has no coverage.json: whether the plan covers an image is not known (quality control)"


class QualityControl:
    """One prediction's.

    Args:
        plans: of the model.
        coverage: of the plan; ``None``: not known.
        keeps_rows: write them; ``False`` warns only, where a single mask is written among files of the user's.
    """

    def __init__(self, plans: Plans, coverage: Coverage | None, *, keeps_rows: bool) -> None:
        self._plans = plans
        self._coverage = coverage
        self._keeps_rows = keeps_rows
        self._rules = load_thresholds().quality
        if coverage is None:
            log.warning(UNKNOWN)

    def look(self, volume: Volume, properties: CaseProperties) -> ImageView:
        """What is kept of an image until its mask is there."""
        return view_image(volume, properties, tuple(channel.name for channel in self._plans.channels), self._coverage)

    def watch(self, num_members: int, num_mirrorings: int) -> CaseAgreement:
        """Watches the members of the ensemble on one case, and each one's mirrorings, the one that is not mirrored included."""
        return CaseAgreement.between(num_members, num_mirrorings, self._plans.num_classes)

    def note(self, case: InputCase, view: ImageView, agreement: CaseAgreement, mask: NDArray[Any]) -> None:
        """Judges a case and writes its row, before its mask is written: a case whose mask is there has its row.

        Raises:
            FedsamError: the row cannot be written.
        """
        row = judge_case(case.case, case.output.name, view, mask, agreement, plans=self._plans, coverage=self._coverage, rules=self._rules)
        for words in row.flags:
            log.warning("%s: %s", case.case, words)
        if self._keeps_rows:
            row.save(row_path(case.output, case.case))
