"""The server's side of a real federation: plans with the sites, then trains, as ``fedsam_train_federated`` does in simulation.

It runs as a Flower ServerApp under a SuperLink, whose environment says where its data folders are. Of raw data it needs nothing but
``dataset.json``, where classes overlap or some voxels are not annotated; images stay where they are.
"""

import json
import logging
import re
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from fedsam_pipeline.dataset.label_scheme import read_label_scheme
from fedsam_pipeline.dataset.raw_checks import is_safe_name
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.federation.encrypted_sums import require_library
from fedsam_pipeline.federation.encryption_rules import require_enough_to_encrypt
from fedsam_pipeline.files import make_folder, parse_json, read_json, write_json
from fedsam_pipeline.flower.messages import QUERY_FINGERPRINT, QUERY_PLAN
from fedsam_pipeline.flower.named_grid import NamedGrid
from fedsam_pipeline.flower.preparation import LATE_SECONDS, Preparation
from fedsam_pipeline.flower.replies import MAX_EXAMPLES, SiteFailed
from fedsam_pipeline.flower.server_app import make_server_app
from fedsam_pipeline.flower.simulation import Grid
from fedsam_pipeline.logs import log_file, printable
from fedsam_pipeline.model.build import ModelSetup
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.trained_files import PLANS_FILE
from fedsam_pipeline.model.weights import find_weights
from fedsam_pipeline.paths import DATASET_PATTERN, data_folders
from fedsam_pipeline.pipeline.coverage_file import planned_coverage
from fedsam_pipeline.pipeline.fingerprints import FOLDER
from fedsam_pipeline.pipeline.plans_file import check_triplanar
from fedsam_pipeline.pipeline.quorum import real_quorum
from fedsam_pipeline.pipeline.site_node import Offer
from fedsam_pipeline.pipeline.site_work import SITE_FOLDER
from fedsam_pipeline.pipeline.train import TrainingRun, finished, refuse_existing
from fedsam_pipeline.pipeline.train_request import (
    RunSetup,
    TrainRequest,
    run_place,
    run_schedule,
    validation_interval,
    with_aggregation,
)
from fedsam_pipeline.pipeline.train_table import result_table
from fedsam_pipeline.planning.merge import merge_fingerprints
from fedsam_pipeline.planning.rules import make_plan
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.postprocessing.candidates import candidate_volumes
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.fingerprint import Fingerprint, WithheldFingerprint
from fedsam_pipeline.specs.plans import Plans, is_plans_name
from fedsam_pipeline.specs.recipe import Recipe

log = logging.getLogger(__name__)
REQUEST_KEY = "request"
"""of Flower's run configuration: JSON of a :class:`FederationRequest`"""
FINGERPRINT_FILE = "fingerprint.json"
ROUND_TIMEOUT = 3600.0
"""seconds, where the user says no other"""
_FOLD = re.compile(r"all|\d{1,3}")
DATASET_KEYS = ("labels", "channel_names", "file_ending", "regions_class_order", "site_labels")
"""of ``dataset.json``: what says nothing of single cases"""


@dataclass(frozen=True)
class FederationRequest:
    """What the user of ``fedsam_train_federated --superlink`` asked for.

    Attributes:
        dataset: name of the dataset's folder, the same at every site.
        sites: names of all sites.
        training: the flags.
        recipe: the recipe in full: the server may not have the user's file.
        base_model: of the plan.
    """

    dataset: str
    sites: tuple[str, ...]
    training: TrainRequest
    recipe: Mapping[str, Any]
    base_model: str

    def to_json(self) -> str:
        """For Flower's run configuration."""
        return json.dumps(asdict(self) | {"recipe": dict(self.recipe)}, allow_nan=False, default=str)

    @classmethod
    def from_json(cls, text: str) -> "FederationRequest":
        """As ``to_json`` gave it.

        Raises:
            FedsamError: it is no such request.
        """
        try:
            values = json.loads(text)
            request = cls(**values | {"training": TrainRequest(**values["training"]), "sites": tuple(values["sites"])})
            if DATASET_PATTERN.match(request.dataset) is None or not request.sites or not all(map(is_safe_name, request.sites)):
                raise ValueError("no dataset, or no names of sites")
            if not is_plans_name(request.training.plans_name) or request.training.configuration not in get_args(Configuration):
                raise ValueError("no name of a plan, or no configuration")
            if _FOLD.fullmatch(request.training.fold) is None:
                raise ValueError(f"no fold of real sites: {request.training.fold!r:.40}")
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise FedsamError(
                "the run configuration holds no request",
                found=f"{type(error).__name__}: {error}",
                expected=f"the key {REQUEST_KEY}, as fedsam_train_federated --superlink writes it",
                fix="start the run with that command",
            ) from error
        return request


def serve(grid: Grid, request: FederationRequest) -> dict[str, Any]:
    """Plans, and trains to the end.

    Returns:
        The run's state.

    Raises:
        FedsamError: no site released anything, the folder holds another run, or a site cannot go on for a reason that its user can mend.
        SiteFailed: a site failed for another reason.
    """
    stop = threading.Event()
    folders = data_folders()
    folder = folders.preprocessed / request.dataset
    make_folder(folder)
    sites = NamedGrid(grid, request.sites)
    with log_file(folder / "logs", "federation"):
        recipe = with_aggregation(Recipe.from_dict(dict(request.recipe)), request.training)
        place = run_place(recipe, request.training.plans_name, request.training, "federated")
        if not all(map(is_safe_name, place.split("/"))):
            raise FedsamError("this request gives no folder for its run", found=repr(place), expected="names of letters, digits, _ . and -")
        run_folder = folders.results / request.dataset / place
        refuse_existing(run_folder, request.training)  # before any site is asked for anything
        heads = AuditHeads(folder / SITE_FOLDER, sites.site_of)
        quorum = real_quorum(recipe.aggregation, request.training.min_sites, len(request.sites))
        if request.training.encrypt:
            require_library()
            require_enough_to_encrypt(len(request.sites), quorum)
        patience = request.training.round_timeout or ROUND_TIMEOUT
        log.info("%d of %d sites are enough; %.0f s are waited for the others", quorum, len(request.sites), patience)
        ask = partial(Preparation, sites, request.sites, heads=heads, stop=stop, quorum=quorum, patience=patience)
        fingerprint, plans = _plan(ask, request, folder, run_folder)
        dataset = _dataset_json(folders.raw / request.dataset / "dataset.json", plans, request.sites)
        write_json(folder / "dataset.json", dataset)
        setup = _setup(request, recipe, plans, fingerprint, dataset, run_folder)

        def connect(serve_rounds: Callable[[Grid, threading.Event], None]) -> None:
            offer = Offer(run.state["run_id"], place, plans, setup.model.recipe, setup.model.configuration, setup.model.random_encoder)
            offered.append(ask(QUERY_PLAN, setup.model.agreement() | offer.to_dict() | {"dataset": request.dataset}, check=_validated))
            offered[0].until_ready()
            serve_rounds(sites, stop)

        def admit(strangers: Collection[str]) -> None:
            """Lets in the sites that have become ready, after asking those that are there and are not, or not any more."""
            for site in strangers:
                offered[0].forget(site)
                sites.ready.discard(site)
            offered[0].ask(LATE_SECONDS)
            for site in sorted(offered[0].told.keys() - sites.ready):
                validated[site] = _validated(site, offered[0].told[site])
                log.info("%s takes part", site)
                sites.ready.add(site)

        offered: list[Preparation] = []
        validated = dict.fromkeys(request.sites, 0)  # known once the sites are ready
        setup = replace(setup, validated=validated, min_sites=quorum, round_timeout=patience, admit=admit)
        run = TrainingRun(setup, request.training, connect)
        return finished(run, request.training, None)


def _plan(ask: Callable[..., Preparation], request: FederationRequest, folder: Path, run_folder: Path) -> tuple[Fingerprint, Plans]:
    """The plan that the sites' fingerprints give; of a run that is continued its own."""
    kept, wanted = run_folder / FINGERPRINT_FILE, request.training.base_model
    if request.training.resume and kept.exists():
        plans = Plans.load(run_folder / PLANS_FILE)
        if wanted not in (None, plans.base_model):
            raise FedsamError(
                "this run is for another base model", path=run_folder, found=plans.base_model, expected=wanted, fix="leave -m out"
            )
        return Fingerprint.load(kept), plans
    told = ask(QUERY_FINGERPRINT, {"run_id": secrets.token_hex(8), "dataset": request.dataset}, check=_released).until_ready()
    released = {site: _released(site, text) for site, text in told.items()}
    for site, document in released.items():
        document.save(folder / FOLDER / f"{site}.json")
    known = {site: document for site, document in released.items() if isinstance(document, Fingerprint)}
    if not known:
        raise FedsamError(
            "there is nothing to plan from: every site has too few cases for its privacy floor",
            found=", ".join(sorted(released)),
            expected="a site that releases its fingerprint",
            fix="wait for more cases, or let a site lower privacy_floor in its SuperNode's configuration",
        )
    log.info("planning from %s%s", ", ".join(known), "" if len(known) == len(released) else "; the others have too few cases to tell")
    fingerprint = merge_fingerprints(known)
    plans = make_plan(fingerprint, base_model_spec(request.base_model), plans_name=request.training.plans_name)
    path = folder / f"{plans.plans_name}.json"
    if path.exists() and Plans.load(path) != plans:
        log.warning("%s was another plan; it is replaced by the one that the sites' fingerprints give", path)
    fingerprint.save(folder / FINGERPRINT_FILE)
    plans.save(path)
    fingerprint.save(kept)
    return fingerprint, plans


def _released(site: str, text: str) -> Fingerprint | WithheldFingerprint:
    try:
        value = parse_json(text)
        return WithheldFingerprint.from_dict(value) if "withheld" in value else Fingerprint.from_dict(value)
    except (ValueError, TypeError, FedsamError) as error:
        raise SiteFailed(f"the fingerprint of {site} cannot be read ({type(error).__name__})") from error


def _validated(site: str, text: str) -> int:
    """The validation cases of a site in all folds, as it tells: a bound for what its sums may hold."""
    try:
        number = parse_json(text)["validated"]
    except (ValueError, TypeError, KeyError) as error:
        raise SiteFailed(f"what {site} tells of its folds cannot be read ({type(error).__name__})") from error
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_EXAMPLES:
        raise SiteFailed(f"{site} tells of {printable(number, 40)} validation cases")
    return number


def _dataset_json(path: Path, plans: Plans, sites: Sequence[str]) -> dict[str, Any]:
    """The federation's ``dataset.json`` where this machine has it, else what the plan says of labels and channels; cases are not in it."""
    channels = {str(number): channel.name for number, channel in enumerate(plans.channels)}
    known: dict[str, Any] = read_json(path) if path.exists() else {"labels": dict(plans.labels), "channel_names": channels}
    known = {key: value for key, value in known.items() if key in DATASET_KEYS}
    labels = read_label_scheme(known, path).classes
    if labels != plans.labels:
        raise FedsamError(
            "dataset.json is not the federation's",
            path=path,
            found=f"labels {labels}",
            expected=f"{plans.labels}, as the sites have them",
            fix="put the federation's dataset.json there, or delete it",
        )
    return known | {"sites": {site: [] for site in sorted(sites)}}


def _setup(
    request: FederationRequest, recipe: Recipe, plans: Plans, fingerprint: Fingerprint, dataset: Mapping[str, Any], folder: Path
) -> RunSetup:
    """The run without its sites' counts."""
    training = request.training
    if training.configuration == "triplanar":
        check_triplanar(plans, Path(f"{plans.plans_name}.json"))
    weights = find_weights(base_model_spec(plans.base_model))
    model = ModelSetup(plans, recipe, weights, training.random_encoder, None, training.configuration)
    schedule = run_schedule(plans, recipe, training, len(request.sites))
    return RunSetup(
        folder=folder,
        sites=(),
        labels=read_label_scheme(dataset, Path("dataset.json")),
        schedule=schedule,
        val_every=validation_interval(training, schedule),
        workers=len(request.sites),
        protocol="federated",
        model=model,
        dataset=dataset,
        candidate_volumes=candidate_volumes(fingerprint, load_thresholds().postprocessing.min_volume_shares),
        validated={},
        coverage=planned_coverage(fingerprint, plans),
        wait_lost=training.wait_lost or 0.0,
        privacy=training.privacy(recipe, schedule.rounds, len(request.sites)),
        encrypt=training.encrypt,
    )


def _serve_and_print(grid: Grid, request: str) -> None:
    print(result_table([serve(grid, FederationRequest.from_json(request))]), flush=True)


server_app = make_server_app(REQUEST_KEY, _serve_and_print)
"""what the SuperLink runs"""
