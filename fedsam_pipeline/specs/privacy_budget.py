"""Differential privacy of a run: what its model may tell of any one site."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PrivacyBudget:
    """What ``--dp_epsilon``, ``--dp_delta`` and ``--dp_clip`` ask for.

    Attributes:
        epsilon, delta: of the whole run (Dwork & Roth, 2014, definition 2.4); neighbours differ in whether one site's updates are in the
            sums.
        clip: largest norm (L2, over all tensors that travel) of a site's update in one round.
    """

    epsilon: float
    delta: float
    clip: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)
