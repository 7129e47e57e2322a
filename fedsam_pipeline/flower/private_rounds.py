"""Differential privacy of the global model with regard to whole sites: Flower's clipping and accountant, noise from the operating system.

The Gaussian mechanism of DP-FedAvg (McMahan et al., ICLR 2018, arXiv:1710.06963; Geyer et al., arXiv:1712.07557): every round each site's
change is clipped to norm C, and the sum of these changes over N, the number of sites of the federation, is added to the state with noise of
standard deviation z C / N for every value. N is fixed, however many answer: whether one site's change is in the sum or not moves the result
by C / N at most, so each round is a Gaussian mechanism with noise multiplier z, whoever is missing. (A mean over those that answer would
move by up to twice that, because its divisor changes too.) All rounds together are accounted for by Renyi differential privacy (Mironov,
CSF 2017, arXiv:1702.07476), without amplification: every site may take part in each.
"""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.serverapp import GaussianPrivacyEvent, NeighboringRelation, PrivacyConfig, SamplingMethod
from flwr.supercore.differential_privacy import compute_stdv
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.flower.clipping import CLIP, EPSILON, clipped
from fedsam_pipeline.specs.privacy_budget import PrivacyBudget

log = logging.getLogger(__name__)
LEDGER_FILE = "privacy.json"
_NOISE_MULTIPLIERS = (1e-3, 1e6)
_LEDGER_FIX = "bring the file back as the run wrote it, or start over: --overwrite"


class PrivateRounds:
    """What makes the rounds of one run private, and the ledger of what they have spent, ``privacy.json`` in the run's folder.

    Args:
        folder: of the run.
        budget: of all its rounds.
        rounds: that are to be released; the noise is the least with which they keep to the budget.
        sites: of the federation, N.

    Attributes:
        noise_multiplier: z of the module.

    Raises:
        FedsamError: the accountant is not installed, no noise keeps to the budget, or the ledger is of another budget or cannot be read.
    """

    def __init__(self, folder: Path, budget: PrivacyBudget, *, rounds: int, sites: int) -> None:
        self._path, self._budget, self._rounds, self._sites = folder / LEDGER_FILE, budget, rounds, sites
        self.noise_multiplier = noise_multiplier(budget, rounds, sites)
        self._accountant = _accountant(budget, sites)
        if self._path.exists():
            self._restore()

    def require_ledger(self, rounds_done: int) -> None:
        """When a run is continued. A checkpoint that was written just before the process died is not in the ledger yet, and now is.

        Args:
            rounds_done: that there is a checkpoint of.

        Raises:
            FedsamError: the ledger knows of fewer releases, or of so many that the rounds that are left would exceed the budget.
        """
        if self._accountant.num_releases == rounds_done - 1:
            self._accountant.compose(self._event)
            self.keep()
        if self._accountant.num_releases < rounds_done:
            raise FedsamError(
                "the privacy ledger of this run lacks releases",
                path=self._path,
                found=f"{self._accountant.num_releases} releases" if self._path.exists() else "no file",
                expected=f"{rounds_done} or more, one a round",
                fix=_LEDGER_FIX,
            )
        if rounds_done < self._rounds:
            self._require(self._rounds - rounds_done)

    def require_budget(self) -> None:
        """Before a round is asked for.

        Raises:
            FedsamError: its model would exceed the budget.
        """
        self._require(1)

    def _require(self, count: int) -> None:
        if self._accountant.would_exceed(self._event, count=count):
            spent = self._accountant.get_privacy_spent()
            raise FedsamError(
                "the privacy budget is spent",
                path=self._path,
                found=f"epsilon {spent.epsilon:.4g} at delta {spent.delta:g} after {spent.num_releases} releases; {count} more exceed it",
                expected=f"at most {self._budget.epsilon:g}",
                fix="rounds whose checkpoints were lost were released twice; --overwrite begins anew, and spends a new budget",
            )

    def told(self) -> dict[str, float]:
        """What the sites are told with a round's message."""
        return {CLIP: self._budget.clip, EPSILON: self.spent["epsilon"]}

    def clip(self, tensors: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A site's update as it may count: sites clip as well, but it is the server that answers for the budget."""
        return clipped(tensors, received, self._budget.clip)

    def release(self, mean: Mapping[str, Tensor], received: Mapping[str, Tensor], num_updates: int) -> dict[str, Tensor]:
        """The state after a round, with its noise. It must not be sent before ``keep``.

        Args:
            mean: of the clipped updates, by name, float64.
            received: what the sites started the round from.
            num_updates: in the mean, all with one weight.
        """
        self.require_budget()
        deviation = compute_stdv(self.noise_multiplier, self._budget.clip, self._sites)
        share = num_updates / self._sites
        self._accountant.compose(self._event)
        log.info("privacy spent: epsilon %.4f of %g at delta %g", self.spent["epsilon"], self._budget.epsilon, self._budget.delta)
        return {name: self._noisy(tensor, received[name].double(), share, deviation) for name, tensor in sorted(mean.items())}

    @staticmethod
    def _noisy(mean: Tensor, received: Tensor, share: float, deviation: float) -> Tensor:
        return received + share * (mean - received) + torch.from_numpy(gaussian_noise(tuple(mean.shape), deviation))

    def keep(self) -> None:
        """Writes the ledger: what was released so far may be sent. A model that was lost before told nobody anything, and is not in it."""
        write_json(self._path, {"schema_version": 1, "spent": self.spent, "accountant": self._accountant.state_dict()})

    @property
    def spent(self) -> dict[str, Any]:
        """JSON values: epsilon so far, of which delta, clip and budget, in how many releases."""
        spent = self._accountant.get_privacy_spent()
        return {
            "epsilon": spent.epsilon,
            "delta": spent.delta,
            "budget": self._budget.epsilon,
            "clip": self._budget.clip,
            "noise_multiplier": self.noise_multiplier,
            "sites": self._sites,
            "releases": spent.num_releases,
        }

    @property
    def _event(self) -> GaussianPrivacyEvent:
        return GaussianPrivacyEvent(self.noise_multiplier, self._sites, self._sites)

    def _restore(self) -> None:
        try:
            self._accountant.load_state_dict(read_json(self._path)["accountant"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FedsamError(
                "the privacy ledger of this run cannot be used", path=self._path, found=str(error), fix=_LEDGER_FIX
            ) from error


def spent_before(folder: Path) -> float | None:
    """The epsilon that an earlier run in this folder spent, by its ledger; ``None`` without one.

    Raises:
        FedsamError: the ledger cannot be read.
    """
    if not (folder / LEDGER_FILE).exists():
        return None
    try:
        return float(read_json(folder / LEDGER_FILE)["spent"]["epsilon"])
    except (KeyError, TypeError, ValueError) as error:
        raise FedsamError(
            "the privacy ledger of the run before cannot be used",
            path=folder / LEDGER_FILE,
            found=str(error),
            fix="keep the file elsewhere: it says what these sites have spent; then --overwrite again",
        ) from error


def noise_multiplier(budget: PrivacyBudget, rounds: int, sites: int) -> float:
    """The least noise multiplier with which so many rounds keep to the budget, to six digits, from above.

    Raises:
        FedsamError: the accountant is not installed, or no noise is enough.
    """
    accountant = _accountant(budget, sites)

    def too_little(value: float) -> bool:
        return bool(accountant.would_exceed(GaussianPrivacyEvent(value, sites, sites), count=rounds))

    low, high = _NOISE_MULTIPLIERS
    if too_little(high):
        raise FedsamError(
            "no noise keeps so many rounds to this privacy budget",
            found=f"epsilon {budget.epsilon:g} at delta {budget.delta:g}, {rounds} rounds",
            fix="raise --dp_epsilon, or lower --rounds",
        )
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_little(middle) else (low, middle)
    return high


def gaussian_noise(shape: tuple[int, ...], deviation: float) -> NDArray[np.float64]:
    """Normal values whose 53 random bits each come from the operating system, through the inverse of the normal distribution.

    Values beyond 8.3 deviations cannot be drawn (about one in 10^16 would be), and the bits below 2^-53 of the distribution are not
    random: Mironov, CCS 2012, shows what an attacker who sees all digits can make of that; here they are rounded to float32 afterwards.
    """
    count = math.prod(shape)
    bits = np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(11)
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(ndtri(uniform).reshape(shape) * deviation, np.float64)  # of no axes, too


def _accountant(budget: PrivacyBudget, sites: int) -> Any:
    """Flower's, with nothing spent.

    Raises:
        FedsamError: the library behind it is not installed.
    """
    from flwr.serverapp import RdpAccountant

    config = PrivacyConfig(
        target_delta=budget.delta,
        population_size=sites,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
        max_epsilon=budget.epsilon,
    )
    try:
        return RdpAccountant(config)
    except ImportError as error:
        raise FedsamError(
            "differential privacy needs an accountant that is not installed",
            found=str(error),
            expected="the extra dp of this package",
            fix="pip install 'fedsam-pipeline[dp]'",
        ) from error
