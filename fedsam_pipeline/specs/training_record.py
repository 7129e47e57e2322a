"""What a model handed on says of its training: no case, no patient, no path."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from fedsam_pipeline.specs.document import Document

Dice = float | None
"""``None`` where nothing was scored"""
_KEPT = ("dataset", "protocol", "sites", "held_out", "strategy", "wire", "rounds", "local_steps", "peak_learning_rate", "seed", "versions")


class SiteScore(Document):
    """The Dice of the shared model on one site's validation cases."""

    dice: Dice
    num_cases: PositiveInt


class ValidationScore(Document):
    """Scores of the final model on the validation cases of its fold."""

    rule: str
    """how the means are taken, in words"""
    grid: str
    """``plan``: at target spacing"""
    dice: Dice
    classes: dict[str, Dice]
    num_cases: PositiveInt
    sites: dict[str, SiteScore] | None
    """``None`` where a site has too few cases for figures of its own"""

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any], floor: int) -> Self | None:
        """From ``validation/summary.json``; ``None`` where nothing was scored or where there are fewer than ``floor`` cases.

        By subtraction the mean of all sites and the others' figures give those of one that is left out. So sites are told apart only where
        each of them has ``floor`` cases.
        """
        together = summary.get("all_sites")
        if together is None or together["num_cases"] < max(1, floor):
            return None
        sites = {site: {"dice": score["dice"], "num_cases": score["num_cases"]} for site, score in summary["sites"].items()}
        enough = all(score["num_cases"] >= max(1, floor) for score in sites.values())
        kept = {key: together[key] for key in ("dice", "classes", "num_cases")}
        return cls.from_dict({**kept, "rule": summary["rule"], "grid": summary["grid"], "sites": sites if enough else None})


class PrivacySpent(Document):
    """Differential privacy of the model with regard to whole sites (``flower/private_rounds.py``)."""

    epsilon: NonNegativeFloat
    delta: PositiveFloat
    budget: PositiveFloat
    clip: PositiveFloat
    noise_multiplier: PositiveFloat
    sites: PositiveInt
    releases: NonNegativeInt

    def __str__(self) -> str:
        noise = f"noise multiplier {self.noise_multiplier:.4g}, updates clipped to {self.clip:g}"
        return f"epsilon {self.epsilon:.4g} at delta {self.delta:g} after {self.releases} releases ({noise})"


class Start(Document):
    """The trained model that a training began with (``--init``)."""

    adapter_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """of its adapter's file"""
    interpolate: float = Field(gt=0, le=1)
    """how far from it to what was trained the model lies"""

    def __str__(self) -> str:
        part = "" if self.interpolate == 1 else f", and lies {self.interpolate:g} of the way from it to what was trained"
        return f"began with the trained adapter of SHA-256 {self.adapter_sha256}{part}"


class TrainingRecord(Document):
    """How one fold came about."""

    schema_version: Literal[1] = 1
    dataset: str
    protocol: Literal["federated", "local", "centralized", "leave_one_site_out"]
    sites: tuple[str, ...]
    """names of the sites that trained"""
    held_out: str | None = None
    strategy: str
    wire: str | None = None
    rounds: PositiveInt
    local_steps: PositiveInt
    peak_learning_rate: PositiveFloat
    seed: int
    versions: dict[str, str]
    train_cases: PositiveInt | None
    """of all sites together; ``None``: not known, or below the privacy floor"""
    bytes_up: NonNegativeInt | None
    bytes_down: NonNegativeInt | None
    """all messages of all sites; ``None``: not known"""
    validation: ValidationScore | None
    """``None``: nothing was scored, or too few cases"""
    privacy: PrivacySpent | None = Field(default=None, exclude_if=lambda value: value is None)
    """left out of the document where no noise was added"""
    start: Start | None = Field(default=None, exclude_if=lambda value: value is None)
    """left out of the document where training began with SAM"""

    @classmethod
    def from_run(cls, run: Mapping[str, Any], *, train_cases: int | None, traffic: tuple[int, int] | None, floor: int, path: str) -> Self:
        """From ``run.json``; what names cases or paths stays behind.

        Args:
            run: its content.
            train_cases: of all sites together.
            traffic: bytes up and down.
            floor: figures of fewer cases than this are left out.
            path: of ``run.json``, for the message.

        Raises:
            FedsamError: a key is missing or of another type.
        """
        kept = {key: run[key] for key in _KEPT if key in run}
        final, start = run.get("final"), run.get("start_sha256", "none")
        return cls.from_dict(
            kept
            | {
                "train_cases": train_cases if train_cases is not None and train_cases >= floor else None,
                "bytes_up": None if traffic is None else traffic[0],
                "bytes_down": None if traffic is None else traffic[1],
                "validation": None if final is None else ValidationScore.from_summary(final, floor),
                "privacy": run["privacy_spent"] if run.get("privacy") is not None else None,
                "start": None if start == "none" else {"adapter_sha256": start, "interpolate": run.get("interpolate", 1.0)},
            },
            path=path,
            fix="export the folder as fedsam_train_federated wrote it",
        )
