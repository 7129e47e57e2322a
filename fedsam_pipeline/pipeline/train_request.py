"""From flags and the preprocessed folder to the site setups of each run."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.label_scheme import LabelScheme, read_label_scheme
from fedsam_pipeline.dataset.raw_checks import read_site_labels
from fedsam_pipeline.dataset.splits import load_splits, make_splits
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.encryption_rules import require_encryptable
from fedsam_pipeline.federation.strategy_settings import require_lossless, strategy_settings
from fedsam_pipeline.files import read_json
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.model.build import ModelSetup
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.weights import find_weights
from fedsam_pipeline.paths import dataset_id
from fedsam_pipeline.pipeline.coverage_file import planned_coverage
from fedsam_pipeline.pipeline.interpolation import checked_share
from fedsam_pipeline.pipeline.plans_file import check_triplanar, load_plans
from fedsam_pipeline.pipeline.private_training import privacy_budget
from fedsam_pipeline.pipeline.quorum import checked_min_sites
from fedsam_pipeline.pipeline.simulated_keys import simulated_key
from fedsam_pipeline.pipeline.site_setups import Machine, StoredDataset, site_setup
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.postprocessing.candidates import CandidateVolumes, candidate_volumes
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.specs.comparison import Protocol
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.coverage import Coverage
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.manifest import Wire
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.privacy_budget import PrivacyBudget
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from fedsam_pipeline.training.local_trainer import RunSchedule

ONE_SITE = ("local", "centralized")
POOLED_SITE = "pooled"
INNER = "-inner"
"""after a fold's number: the training part of that fold, split again, for choices that the fold's validation cases must not see"""


@dataclass(frozen=True)
class TrainRequest:
    """The flags of ``fedsam_train_federated``; ``None`` leaves a value to the recipe or the plan."""

    recipe: str = "default"
    plans_name: str = "plans"
    configuration: Configuration = "main"
    base_model: str | None = None
    fold: str = "0"
    protocol: Protocol = "federated"
    rounds: int | None = None
    local_steps: int | None = None
    learning_rate: float | None = None
    val_every: int | None = None
    seed: int = 0
    device: str = "auto"
    compiled: bool = False
    workers: int | None = None
    gpu_memory_target: float | None = None
    """GiB"""
    strategy: str | None = None
    lora_method: str | None = None
    """``none`` switches the recipe's off"""
    weighting: str | None = None
    strategy_options: Mapping[str, float] = field(default_factory=dict)
    wire: Wire | None = None
    random_encoder: bool = False
    init: Path | None = None
    """a trained fold's folder to start from"""
    interpolate: float | None = None
    """share of the trained model in what is kept, the rest being that start; ``None``: 1"""
    min_sites: int | None = None
    """whose updates a round needs; ``None``: all in simulation, more than half of real sites"""
    round_timeout: float | None = None
    """seconds; ``None``: any time in simulation, an hour of real sites"""
    wait_lost: float | None = None
    """seconds before a round, for sites that were there and are gone; ``None``: none"""
    encrypt: bool = False
    dp_epsilon: float | None = None
    dp_delta: float | None = None
    dp_clip: float | None = None
    resume: bool = False
    overwrite: bool = False

    def privacy(self, recipe: Recipe, rounds: int, sites: int) -> PrivacyBudget | None:
        """The budget that the flags ask for; see :func:`privacy_budget`."""
        flags = (self.dp_epsilon, self.dp_delta, self.dp_clip)
        return privacy_budget(flags, recipe.aggregation, rounds=rounds, sites=sites, encrypted=self.encrypt)


@dataclass(frozen=True)
class RunSetup:
    """One run: a federation of one or more sites, and where it is written.

    Attributes:
        folder: the ``fold_K`` folder.
        sites: those that this machine computes for, in sorted order; none where the sites are other machines.
        labels: what the values of the masks mean, and what is scored.
        candidate_volumes: of the federation's fingerprint.
        validated: every site of the federation to its validation cases in all folds.
        held_out: a site outside the federation that the trained model is scored on.
        coverage: for quality control; ``None``: not known.
        min_sites, round_timeout, wait_lost: see ``RoundPlan``.
        admit: see ``RoundLoop``.
        privacy: differential privacy of the global model; ``None``: none.
        encrypt: whether the sites encrypt their updates.
        interpolate: see ``interpolated``.
    """

    folder: Path
    sites: tuple[SiteSetup, ...]
    labels: LabelScheme
    schedule: RunSchedule
    val_every: int
    workers: int
    protocol: Protocol
    model: ModelSetup
    dataset: Mapping[str, Any]
    candidate_volumes: CandidateVolumes
    validated: Mapping[str, int]
    held_out: SiteSetup | None = None
    coverage: Coverage | None = None
    min_sites: int | None = None
    round_timeout: float | None = None
    wait_lost: float = 0.0
    admit: Callable[[Collection[str]], None] | None = None
    privacy: PrivacyBudget | None = None
    encrypt: bool = False
    interpolate: float = 1.0

    @property
    def quorum(self) -> int:
        """Sites that a round needs."""
        return len(self.validated) if self.min_sites is None else self.min_sites

    @property
    def site_names(self) -> tuple[str, ...]:
        """Of the federation, sorted."""
        return tuple(sorted(self.validated))

    @property
    def chooses_postprocessing(self) -> bool:
        """Whether the final evaluation is of the federation's own cases, unseen by a model like those that predict: not of a site that is
        left out, not of none (``all``), not of an inner fold. Under differential privacy nothing is chosen from exact sums."""
        return self.held_out is None and self.privacy is None and self.folder.name.removeprefix("fold_").isdigit()

    @property
    def all_sites(self) -> tuple[SiteSetup, ...]:
        """The federation's, and the one that is left out."""
        return self.sites if self.held_out is None else (*self.sites, self.held_out)


def run_setups(preprocessed: Path, results: Path, request: TrainRequest) -> list[RunSetup]:
    """The runs that a request asks for: one, or one a site under ``local`` and ``leave_one_site_out``.

    Args:
        preprocessed: folder of the planned dataset.
        results: root of all results.
        request: the flags.

    Raises:
        FedsamError: a file of the preprocessed dataset is missing or broken, a flag does not fit it, or weights are missing.
    """
    plan_again = f"fedsam_plan_and_preprocess -d {dataset_id(preprocessed.name)} -p {request.plans_name}"
    dataset = read_json(preprocessed / "dataset.json", fix=plan_again)
    labels = read_label_scheme(dataset, preprocessed / "dataset.json")
    plans = load_plans(
        preprocessed / f"{request.plans_name}.json",
        fix=f"mend the file, or delete it and plan again: {plan_again}",
        labels=labels.classes,
    )
    if request.base_model not in (None, plans.base_model):
        raise FedsamError(
            "the plan is for another base model",
            path=preprocessed / f"{request.plans_name}.json",
            found=plans.base_model,
            expected=request.base_model,
            fix=f"fedsam_plan_and_preprocess -d {dataset_id(preprocessed.name)} -m {request.base_model} -p NAME, then train with -p NAME",
        )
    plan_again += f" -m {plans.base_model}"
    if request.configuration == "triplanar":
        check_triplanar(plans, preprocessed / f"{request.plans_name}.json")
    recipe = with_aggregation(load_recipe(request.recipe), request)
    spec = base_model_spec(plans.base_model)
    weights = find_weights(spec)
    sites: dict[str, list[str]] = {site: sorted(cases) for site, cases in sorted(dataset["sites"].items())}
    folds = _fold(preprocessed, request.fold, sites, dataset.get("patients", {}))
    store = store_folder(preprocessed, plans)
    _check_store(store, sites, plan_again)
    annotated = _annotated(dataset, preprocessed / "dataset.json", labels)
    schedule = run_schedule(plans, recipe, request, len(sites))
    owner = {case: site for site, cases in sites.items() for case in cases}
    fingerprint = Fingerprint.load(preprocessed / "fingerprint.json", fix=plan_again)
    volumes = candidate_volumes(fingerprint, load_thresholds().postprocessing.min_volume_shares)
    validated = [split["val"] for split in read_json(preprocessed / "splits_final.json")]
    groups = _groups(request.protocol, sites)
    start = None if request.init is None else request.init.absolute()
    model = ModelSetup(plans, recipe, weights, request.random_encoder, start, request.configuration)
    share = checked_share(request.interpolate, request.protocol, starts=start is not None)
    coverage = planned_coverage(fingerprint, plans)
    began = "" if start is None else model.start_sha256
    data = StoredDataset(store, owner, labels, annotated, dataset.get("patients", {}), len(validated), fingerprint.privacy_floor)
    setups = []
    for name, members in groups.items():
        fold = results / preprocessed.name / run_place(recipe, request.plans_name, request, name, began)
        machine = Machine(request.device, request.workers or min(len(members), usable_cores()), request.gpu_memory_target, request.compiled)
        alone = replace(data, privacy_floor=1) if len(members) == 1 else data  # one site: nothing leaves it
        setup_of = partial(site_setup, data=alone, model=model, fold=fold, machine=machine)
        key = simulated_key(fold, len(members), request.min_sites) if request.encrypt else None
        held_out = None
        if request.protocol == "leave_one_site_out":
            left = name.removeprefix("leave_one_site_out-")
            held_out = setup_of(left, (), sites[left] if request.fold == "all" else folds["val"].intersection(sites[left]))
        setups.append(
            RunSetup(
                folder=fold,
                sites=tuple(
                    replace(setup_of(site, folds["train"].intersection(own), folds["val"].intersection(own)), encryption_key=key)
                    for site, own in members.items()
                ),
                labels=labels,
                schedule=schedule,
                val_every=validation_interval(request, schedule),
                workers=machine.workers,
                protocol=request.protocol,
                model=model,
                dataset=dataset,
                candidate_volumes=volumes,
                validated={site: sum(len(set(own).intersection(val)) for val in validated) for site, own in members.items()},
                held_out=held_out,
                coverage=coverage,
                min_sites=checked_min_sites(request.min_sites, len(members)),
                round_timeout=request.round_timeout,
                privacy=request.privacy(recipe, schedule.rounds, len(members)),
                encrypt=request.encrypt,
                interpolate=share,
            )
        )
    return setups


def _groups(protocol: Protocol, sites: Mapping[str, list[str]]) -> dict[str, Mapping[str, list[str]]]:
    """Run to its sites and their cases.

    Raises:
        FedsamError: there is no other site to train on.
    """
    if protocol == "federated":
        return {"federated": sites}
    if protocol == "centralized":
        return {"centralized": {POOLED_SITE: sorted(case for cases in sites.values() for case in cases)}}
    if protocol == "local":
        return {f"local-{site}": {site: cases} for site, cases in sites.items()}
    if len(sites) < 2:
        raise FedsamError(
            "leave_one_site_out needs several sites",
            found=", ".join(sites),
            expected="at least two sites in dataset.json",
            fix="use another --protocol",
        )
    return {f"leave_one_site_out-{left}": {site: cases for site, cases in sites.items() if site != left} for left in sites}


def with_aggregation(recipe: Recipe, request: TrainRequest) -> Recipe:
    """The recipe with what the command line says of aggregation. Another strategy or LoRA method takes none of the recipe's settings.

    One site alone has nothing to aggregate: what the recipe says of it is left out.
    """
    own = recipe.aggregation
    if request.protocol in ONE_SITE:
        own = own.model_copy(update={"strategy": "fedavg", "lora_method": None, "weighting": "size", "wire": "fp32", "options": {}})
    if request.dp_epsilon is not None:  # unless the user says another, which is refused
        own = own.model_copy(update={"weighting": "equal"})
    strategy = request.strategy or own.strategy
    lora_method = own.lora_method if request.lora_method is None else None if request.lora_method == "none" else request.lora_method
    same = (strategy, lora_method) == (own.strategy, own.lora_method)
    options = (own.options if same else {}) | dict(request.strategy_options)
    strategy_settings(strategy, lora_method, options)
    wire = request.wire or own.wire
    require_lossless(lora_method, wire)
    values = {
        "strategy": strategy,
        "lora_method": lora_method,
        "weighting": request.weighting or own.weighting,
        "wire": wire,
        "options": options,
    }
    resolved = Recipe.from_dict(recipe.to_dict() | {"aggregation": values})
    if request.encrypt:
        require_encryptable(resolved.aggregation)
    return resolved


def run_place(recipe: Recipe, plans_name: str, request: TrainRequest, group: str, start: str = "") -> str:
    """``ADAPTATION/RUN/fold_K``, where a run lies below the results of its dataset.

    Args:
        recipe: resolved, see ``with_aggregation``.
        plans_name: of the plan.
        request: the flags.
        group: ``federated``, ``local-SITE`` and so on.
        start: hash of the adapter that training begins with, or nothing.
    """
    special = ("-random_encoder" if request.random_encoder else "") + (f"-from_{start[:8]}" if start else "")
    adaptation = f"{recipe.name}{special}__{plans_name}__{request.configuration}"
    private = ("-encrypted" if request.encrypt else "") + (
        "" if request.dp_epsilon is None else f"-dp{request.dp_epsilon:g}".replace("+", "")
    )
    method = _method_name(recipe, request.learning_rate) + ("" if request.interpolate is None else f"-interpolate{request.interpolate:g}")
    return f"{adaptation}/{group}__{method}{private}__seed{request.seed}/fold_{request.fold}"


def validation_interval(request: TrainRequest, schedule: RunSchedule) -> int:
    """Rounds from one validation to the next: a fifth of the run where nobody says another."""
    return request.val_every if request.val_every is not None else max(1, -(-schedule.rounds // 5))


def _method_name(recipe: Recipe, learning_rate: float | None) -> str:
    """Strategy, LoRA method, weighting, wire and a learning rate of the user's as a folder's name shows them; what is usual is left out."""
    aggregation = recipe.aggregation
    weighting = None if aggregation.weighting == "size" else aggregation.weighting
    lossy = None if aggregation.wire == "fp32" else aggregation.wire
    rate = None if learning_rate is None else f"lr{learning_rate:g}"
    return "-".join(part for part in (aggregation.strategy, aggregation.lora_method, weighting, lossy, rate) if part)


def _annotated(dataset: Mapping[str, Any], path: Path, labels: LabelScheme) -> dict[str, tuple[int, ...]]:
    """Site to the foreground values it annotated, of the sites that did not annotate every class."""
    sites = {*dataset["sites"], *dataset.get("test_sites", {})}
    return labels.annotated(read_site_labels(dataset, path, sites, labels))


def run_schedule(plans: Plans, recipe: Recipe, request: TrainRequest, num_sites: int) -> RunSchedule:
    """Rounds and steps. Centralized training takes the steps of all sites together; local training those of its own site."""
    planned = plans.training
    local_steps = request.local_steps or planned.local_steps
    rate = request.learning_rate or (planned.learning_rate if recipe.optimizer.learning_rate == "auto" else recipe.optimizer.learning_rate)
    return RunSchedule(
        rounds=request.rounds or planned.rounds,
        local_steps=local_steps * num_sites if request.protocol == "centralized" else local_steps,
        peak_learning_rate=rate,
        seed=request.seed,
    )


def _fold(preprocessed: Path, fold: str, sites: Mapping[str, list[str]], patients: Mapping[str, str]) -> dict[str, set[str]]:
    """Training and validation cases of a fold; ``all`` trains on everything and validates nothing, ``0-inner`` knows fold 0's training
    part alone and validates on a fifth of it."""
    path = preprocessed / "splits_final.json"
    cases = [case for members in sites.values() for case in members]
    splits = load_splits(path, cases, patients)
    if fold == "all":
        return {"train": set(cases), "val": set()}
    number = fold.removesuffix(INNER)
    if number not in map(str, range(len(splits))):
        expected = f"0 to {len(splits) - 1}, or all; 0{INNER} splits the training part of fold 0 again"
        raise FedsamError("there is no such fold", path=path, found=f"-f {fold}", expected=expected, fix="mend -f")
    chosen = {name: set(members) for name, members in splits[int(number)].items()}
    if fold != number:
        known = {site: sorted(chosen["train"].intersection(members)) for site, members in sites.items()}
        inner = make_splits({site: members for site, members in known.items() if members}, patients)[0]
        chosen = {name: set(members) for name, members in inner.items()}
    without = [site for site, members in sites.items() if not chosen["train"] & set(members)]
    if without:
        raise FedsamError(
            f"fold {fold} leaves a site without training cases",
            path=path,
            found=", ".join(without),
            expected="at least one training case a site",
            fix="mend the splits, use another fold, or train on all cases: -f all",
        )
    return chosen


def _check_store(store: Path, sites: Mapping[str, list[str]], plan_again: str) -> None:
    stored = set(CaseStore(store).cases()) if store.is_dir() else set()
    missing = [case for cases in sites.values() for case in cases if case not in stored]
    if missing:
        raise FedsamError(
            "some cases are not preprocessed for this plan",
            path=store,
            found=f"{len(missing)} missing, such as {', '.join(missing[:3])}",
            expected=f"{sum(map(len, sites.values()))} cases",
            fix=plan_again,
        )
