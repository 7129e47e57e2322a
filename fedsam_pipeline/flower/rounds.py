"""What the server knows of a run, what it sends in a round, and what is left of a round."""

from dataclasses import astuple, dataclass
from typing import Any

from fedsam_pipeline.evaluation.summary import SiteDice
from fedsam_pipeline.federation.update_bounds import UpdateBound
from fedsam_pipeline.flower.reach import update_bound
from fedsam_pipeline.specs.manifest import Wire
from fedsam_pipeline.specs.recipe import Recipe, Weighting
from fedsam_pipeline.training.local_trainer import RunSchedule


@dataclass(frozen=True)
class RoundPlan:
    """What the server knows of a run.

    Attributes:
        run_id: opaque id that both sides compare.
        schedule: rounds, steps, learning rate, seed.
        val_every: the received model is scored in every so many rounds; 0 never.
        agreement: hashes of plan, recipe and base weights.
        sites: names of all; nobody else may answer.
        class_names: of what is scored, in order: the regions, or else the foreground classes.
        recipe: of the run; its optimizer and schedule say how far an update can be from what the sites received.
        min_sites: whose updates a round needs; it goes on without the others. ``None``: all must answer, and only what is refused may lack.
        timeout: seconds to wait for each site's answer once it is asked, and for enough sites to be there; ``None`` waits for all.
        wait_lost: seconds that an exchange waits, before it begins, for sites that answered earlier and are gone.
        wire: how states and updates travel.
        window: sites that are asked at once, see :func:`answers`; ``None``: all.
        encrypted: the sites encrypt their updates, weighted so, and the server sees their sum alone; ``None``: it sees each.
    """

    run_id: str
    schedule: RunSchedule
    val_every: int
    agreement: dict[str, str]
    sites: tuple[str, ...]
    class_names: tuple[str, ...]
    recipe: Recipe
    min_sites: int | None = None
    timeout: float | None = None
    wire: Wire = "fp32"
    window: int | None = None
    encrypted: Weighting | None = None
    wait_lost: float = 0.0

    def bound(self, round_number: int) -> UpdateBound:
        """Of an update of this round."""
        return update_bound(self.recipe, self.schedule, self.wire, round_number)

    @property
    def quorum(self) -> int:
        """Sites that a round needs."""
        return len(self.sites) if self.min_sites is None else self.min_sites


@dataclass(frozen=True)
class Sent:
    """What went to one node in one exchange.

    Attributes:
        bytes_folded: of FedEx-LoRA's residuals, which travel as they are.
        bytes_after: of the payloads.
        bytes_message: of the messages.
        encode_seconds: that the server took for the payloads.
    """

    bytes_folded: int = 0
    bytes_after: int = 0
    bytes_message: int = 0
    encode_seconds: float = 0.0

    def __add__(self, other: "Sent") -> "Sent":
        return Sent(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class FinalScores:
    """Dice by site after the last round.

    Attributes:
        shared: of the model that all sites share.
        personal: of each site's own model; ``None`` where no tensor stays at a site.
        refused: site to the reason why its answer was refused; it is in neither of the others.
        missing: site to the reason why it did not answer.
        traffic: the bytes it took, of refused answers too.
    """

    shared: dict[str, SiteDice]
    personal: dict[str, SiteDice] | None
    refused: dict[str, str]
    missing: dict[str, str]
    traffic: dict[str, Any]


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``progress.jsonl`` and one entry of ``communication.json``."""

    progress: dict[str, Any]
    communication: dict[str, Any]
