"""Who answers in an exchange, who does not, and whether it can go on without them."""

import logging
from collections.abc import Collection, Iterable, Mapping

from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.flower.replies import SiteFailed, SpeakersConfused
from fedsam_pipeline.flower.rounds import RoundPlan
from fedsam_pipeline.logs import printable

log = logging.getLogger(__name__)


class Attendance:
    """Of one exchange.

    Args:
        plan: which sites there are, and how many are needed.
        heads: which node is which site.
        asked: the nodes that got a message.

    Attributes:
        strangers: sites that know nothing of this run, as one whose disk was lost.
    """

    def __init__(self, plan: RoundPlan, heads: AuditHeads, asked: Iterable[int]) -> None:
        self._plan, self._heads, self._asked = plan, heads, tuple(asked)
        self._failed: dict[str, str] = {}
        self.strangers: set[str] = set()

    def failed(self, node: int, error: SiteFailed) -> None:
        """A node gave no usable answer; raises ``SiteFailed`` where the run cannot do without it, or does not know whose word counts."""
        registered = self._heads.site_of(node)
        site = registered or error.site or f"node {node}"
        said = str(error)
        if self._heads.registered and error.site not in (None, registered, "unknown"):
            said = f"it answers as {printable(error.site, 40)}"
        elif error.code == "agreement_broken":
            self.strangers.add(site)
        self._failed[site] = said
        if isinstance(error, SpeakersConfused):
            raise error
        left = len(self._plan.sites) - len(self._failed)
        if left < self._plan.quorum:
            words = said if said.startswith(site) else f"{site}: {said}"
            few = "" if self._plan.min_sites is None else f"{left} of {self._plan.min_sites} needed sites are left; "
            raise SiteFailed(few + (words if not few else _listed(self._failed)), error.code, site)
        log.warning("it goes on without %s: %s", site, said)

    def missing(self, answered: Collection[str]) -> dict[str, str]:
        """Site to the reason why it did not answer, sorted.

        Raises:
            SiteFailed: all must answer, and some did not.
        """
        if self._plan.min_sites is None and (lacking := len(self._plan.sites) - len(answered)) > 0:
            raise SiteFailed(f"{lacking} of {len(self._plan.sites)} sites did not answer")
        silent = set(self._plan.sites) - set(answered) - self._failed.keys()
        asked = {self._heads.site_of(node) for node in self._asked}
        late = "no answer" if self._plan.timeout is None else f"no answer within {self._plan.timeout:g} s"
        there = self._plan.sites if not self._heads.registered else asked
        found = {site: late if site in there else "not there" for site in sorted(silent)}
        for site, reason in found.items():
            log.warning("it goes on without %s: %s", site, reason)
        return dict(sorted((self._failed | found).items()))

    def enough(self, usable: int, reasons: Mapping[str, str]) -> None:
        """Raises ``SiteFailed`` where fewer answers are usable than a round needs, and says what became of the others."""
        if self._plan.min_sites is not None and usable < self._plan.min_sites:
            raise SiteFailed(f"{usable} of {self._plan.min_sites} needed sites gave a usable answer; {_listed(reasons)}")


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{site}: {reason}" for site, reason in sorted(reasons.items()))
