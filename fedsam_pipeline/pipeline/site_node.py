"""A hospital's side of a real federation: its folders, what it agrees to, and its setup for a run.

A SuperNode names the site (``--node-config 'site="site_a"'``); the data folders come from its environment, as for every command. Each
message meets a fresh process, so all that a run needs lies on the site's disk.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.label_scheme import read_label_scheme
from fedsam_pipeline.dataset.raw_checks import is_safe_name, read_site_labels
from fedsam_pipeline.dataset.splits import load_splits
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.flower.client_app import AgreementBroken
from fedsam_pipeline.flower.preparation import Keys, Told, make_site_app
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.model.build import ModelSetup
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.weights import find_weights
from fedsam_pipeline.paths import DATASET_PATTERN, data_folders
from fedsam_pipeline.pipeline.site_folders import clear_site
from fedsam_pipeline.pipeline.site_job import SiteJob
from fedsam_pipeline.pipeline.site_setups import Machine, StoredDataset, site_setup
from fedsam_pipeline.pipeline.site_work import FINGERPRINT, PREPARE, SITE_FOLDER
from fedsam_pipeline.planning.privacy import DEFAULT_FLOOR
from fedsam_pipeline.preprocessing.store import store_folder
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.plans import Plans, is_plans_name
from fedsam_pipeline.specs.recipe import Recipe

AGREED_KEYS = ("plan_sha256", "recipe_sha256", "weights_sha256")
"""keys of a SuperNode's configuration: where one is set, the site takes part in nothing else"""
_PLACE = re.compile(r"[^/]+/federated__[^/]+/fold_(all|\d{1,3})")
PATIENCE = 20.0
"""seconds that an answer waits for measuring and preprocessing: each question starts a process at the site"""
OFFER_KEYS = ("run_id", "run", "plans", "recipe", "configuration", "encoder")


@dataclass(frozen=True)
class SiteNode:
    """One site and one dataset.

    Attributes:
        site: its name in the federation.
        dataset: name of the dataset's folder.
        raw_root, preprocessed_root, results_root: this machine's data folders.
        privacy_floor: patients that every number stands for which leaves the site.
        device: ``auto``, ``cpu`` or ``cuda``.
        agreed: hashes that this site insists on, by key of ``AGREED_KEYS``.
        encryption_key: the sites' common key; with one, updates leave this site encrypted or not at all.
    """

    site: str
    dataset: str
    raw_root: Path
    preprocessed_root: Path
    results_root: Path
    privacy_floor: int
    device: str
    agreed: Mapping[str, str]
    encryption_key: Path | None = None

    @classmethod
    def configured(cls, config: Keys, dataset: str) -> "SiteNode":
        """The site that a SuperNode is configured for.

        Raises:
            FedsamError: the SuperNode's configuration names no site, or holds a wrong value.
        """
        if unknown := sorted(set(config) - {"site", "privacy_floor", "device", "encryption_key", *AGREED_KEYS}):
            raise FedsamError(
                "unknown keys in the configuration of a SuperNode",
                found=", ".join(unknown),
                expected=f"site, privacy_floor, device, encryption_key, {', '.join(AGREED_KEYS)}",
                fix="mend --node-config in its start.sh: a key that is not known would protect from nothing",
            )
        site = config.get("site")
        if not isinstance(site, str) or not is_safe_name(site):
            raise FedsamError(
                "a SuperNode does not know which site it is",
                found=f"site={site!r}",
                expected="a name of letters, digits, _ . and -",
                fix="start it with --node-config 'site=\"site_a\"'",
            )
        floor = config.get("privacy_floor", DEFAULT_FLOOR)
        if isinstance(floor, bool) or not isinstance(floor, int) or floor < 1:
            raise FedsamError("privacy_floor of a SuperNode is no number of patients", found=repr(floor), expected="a whole number from 1")
        folders = data_folders()
        agreed = {key: str(config[key]) for key in AGREED_KEYS if key in config}
        key, device = _encryption_key(config), str(config.get("device", "auto"))
        return cls(site, dataset, folders.raw, folders.preprocessed, folders.results, floor, device, agreed, key)

    @property
    def num_threads(self) -> int:
        """CPU threads it may use: a SuperNode runs one message at a time."""
        return usable_cores()

    @property
    def folder(self) -> Path:
        """The preprocessed dataset."""
        return self.preprocessed_root / self.dataset

    @property
    def state_folder(self) -> Path:
        """Of its log before a run begins."""
        return self.folder / SITE_FOLDER

    @cached_property
    def _where(self) -> dict[str, str]:
        raw = self.raw_root / self.dataset
        return {"raw": str(raw.absolute()), "preprocessed": str(self.folder.absolute()), "site": self.site}

    def fingerprint(self, config: Keys) -> Told:
        """See ``PreparedSite``."""
        asked = {"kind": FINGERPRINT, "privacy_floor": self.privacy_floor, "run_id": str(config["run_id"]), **self._where}
        return Told(SiteJob(self.state_folder / "jobs", asked).told(PATIENCE))

    def prepare(self, config: Keys) -> Told:
        """See ``PreparedSite``.

        Raises:
            AgreementBroken: plan, recipe or base weights are not what their hashes say, or not what this site agreed to; or the run's
                place is taken by what this site has trained itself.
        """
        offer = Offer.read(config)
        offer.check(config, self.agreed)
        if offer.plans.dataset_name != self.dataset:
            raise AgreementBroken(f"the plan is for {offer.plans.dataset_name!r:.80}, the message for {self.dataset}")
        fold = self.results_root / self.dataset / offer.run
        if (fold / "run.json").exists():
            raise AgreementBroken(f"{offer.run} is a run that this machine has trained itself")
        asked = {"kind": PREPARE, "plans": offer.plans.to_dict(), "fold": offer.fold, "run_id": offer.run_id, **self._where}
        told = SiteJob(self.state_folder / "jobs", asked).told(PATIENCE)
        if told is not None:
            self._accept(offer)
        return Told(told)

    def setup(self, run_id: str) -> SiteSetup:
        """What it trains and scores with in a run that it accepted.

        Raises:
            AgreementBroken: its people have agreed to something else since.
        """
        accepted = read_json(self._accepted(run_id))
        offer = Offer.from_dict(accepted)
        offer.check(offer.model().agreement(), self.agreed)
        dataset = read_json(self.folder / "dataset.json")
        labels = read_label_scheme(dataset, self.folder / "dataset.json")
        train, val = (list(map(str, accepted[part])) for part in ("train", "val"))
        annotated = labels.annotated(read_site_labels(dataset, self.folder / "dataset.json", {self.site}, labels))
        model = offer.model()
        data = StoredDataset(
            store_folder(self.folder, offer.plans),
            dict.fromkeys((*train, *val), self.site),
            labels,
            annotated,
            dataset.get("patients", {}),
            int(accepted["num_folds"]),
            self.privacy_floor,
        )
        fold = self.results_root / self.dataset / offer.run
        setup = site_setup(self.site, train, val, data, model, fold, Machine(self.device, workers=1))
        return replace(setup, encryption_key=self.encryption_key)

    def _cases(self) -> list[str]:
        return sorted(read_json(self.folder / "dataset.json")["sites"][self.site])

    def _accepted(self, run_id: str) -> Path:
        if not is_safe_name(run_id):
            raise AgreementBroken("the message names no run")
        return self.state_folder / "runs" / f"{run_id}.json"

    def _accept(self, offer: "Offer") -> None:
        """Writes it down, with the cases as they are now: those of a run do not change. A new run in the place of an older one starts
        without what that one left."""
        path = self._accepted(offer.run_id)
        if path.exists():
            return
        cases, patients = self._cases(), read_json(self.folder / "dataset.json").get("patients", {})
        splits = load_splits(self.folder / "splits_final.json", cases, patients)
        chosen = {"train": cases, "val": []} if offer.fold == "all" else dict(splits[int(offer.fold)])
        fold = self.results_root / self.dataset / offer.run
        clear_site(fold / "sites" / self.site)
        (fold / "execution" / f"{self.site}.json").unlink(missing_ok=True)
        write_json(path, {**offer.to_dict(), **chosen, "num_folds": len(splits)})


@dataclass(frozen=True)
class Offer:
    """What a server asks a site to take part in.

    Attributes:
        run_id: opaque.
        run: ``ADAPTATION/RUN/fold_K``, the run's place below the results of the dataset, here as there.
        plans, recipe: in full.
        configuration: the views that are trained on.
        random_encoder: whether the image encoder is drawn at random.
    """

    run_id: str
    run: str
    plans: Plans
    recipe: Recipe
    configuration: Configuration
    random_encoder: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Offer":
        """Out of a message.

        Raises:
            AgreementBroken: a key is missing, or what it holds is no such document.
        """
        missing = [key for key in OFFER_KEYS if not isinstance(config.get(key), str)]
        if missing:
            raise AgreementBroken(f"the message comes without {', '.join(missing)}")
        try:
            return cls.from_dict({key: config[key] for key in OFFER_KEYS})
        except (ValueError, RecursionError, FedsamError) as error:
            raise AgreementBroken(f"the message cannot be read: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> "Offer":
        """As ``to_dict`` gave it; ``ValueError`` or ``FedsamError`` where it is not."""
        parts = values["run"].split("/")
        if not all(map(is_safe_name, parts)) or _PLACE.fullmatch(values["run"]) is None:
            raise ValueError(f"no place of a federated run: {values['run']!r:.80}")
        configuration = values["configuration"]
        if configuration not in ("main", "triplanar"):
            raise ValueError(f"no configuration: {configuration!r:.40}")
        plans = Plans.from_dict(json.loads(values["plans"]))
        if not is_plans_name(plans.plans_name):  # it becomes a file's
            raise ValueError(f"no name of a plan: {plans.plans_name!r:.40}")
        return cls(
            values["run_id"],
            values["run"],
            plans,
            Recipe.from_dict(json.loads(values["recipe"])),
            configuration,  # type: ignore[arg-type]
            values["encoder"] == "random",
        )

    @property
    def fold(self) -> str:
        """Its number, or ``all``."""
        return self.run.rpartition("fold_")[2]

    def to_dict(self) -> dict[str, str]:
        """Plain text by key, as in the message and on disk."""
        return {
            "run_id": self.run_id,
            "run": self.run,
            "plans": json.dumps(self.plans.to_dict(), allow_nan=False),
            "recipe": json.dumps(self.recipe.to_dict(), allow_nan=False),
            "configuration": self.configuration,
            "encoder": "random" if self.random_encoder else "pretrained",
        }

    def model(self) -> ModelSetup:
        """With this machine's base weights."""
        weights = find_weights(base_model_spec(self.plans.base_model))
        return ModelSetup(self.plans, self.recipe, weights, self.random_encoder, None, self.configuration)

    def check(self, config: Mapping[str, Any], agreed: Mapping[str, str]) -> None:
        """Holds it against the hashes of the message, and against those that the site insists on.

        Raises:
            AgreementBroken: one differs.
        """
        own = self.model().agreement()
        for key, value in own.items():
            if config.get(key) != value:
                raise AgreementBroken(f"{key}: the message has {config.get(key)!r:.80}, what came with it has {value}")
        for key, value in agreed.items():
            if own[key] != value:
                raise AgreementBroken(f"{key}: this site agreed to {value}, the message has {own[key]}")


def _encryption_key(config: Keys) -> Path | None:
    """What a SuperNode's configuration says of the sites' common key."""
    if "encryption_key" not in config:
        return None
    told = config["encryption_key"]
    if not isinstance(told, str) or not Path(told).is_absolute():
        raise FedsamError(
            "encryption_key of a SuperNode is no file",
            found=repr(told),
            expected="an absolute path",
            fix="fedsam_site_kit encrypt FOLDER, then fedsam_site_kit place FOLDER",
        )
    return Path(told)


def find_site(configuration: Keys, asked: Keys) -> SiteNode:
    """The site of a SuperNode, with the dataset that the message is about.

    Raises:
        AgreementBroken: it names none.
    """
    dataset = asked.get("dataset")
    if not isinstance(dataset, str) or DATASET_PATTERN.match(dataset) is None:
        raise AgreementBroken("the message names no dataset")
    return SiteNode.configured(configuration, dataset)


def find_setup(configuration: Keys, asked: Keys) -> SiteSetup:
    """Its setup for the run that the message names.

    Raises:
        AgreementBroken: it accepted no such run.
    """
    run_id = str(asked.get("run_id"))
    accepted = sorted(data_folders().preprocessed.glob(f"*/{SITE_FOLDER}/runs/{run_id}.json")) if is_safe_name(run_id) else []
    if not accepted:
        raise AgreementBroken(f"this site accepted no run {run_id!r:.40}")
    return SiteNode.configured(configuration, accepted[0].parents[2].name).setup(run_id)


client_app = make_site_app(find_site, find_setup)
"""what a SuperNode runs"""
