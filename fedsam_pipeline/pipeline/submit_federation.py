"""``fedsam_train_federated --superlink``: checks what was asked for, and hands it to the federation's server."""

import re
from collections.abc import Sequence

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.encryption_rules import require_enough_to_encrypt
from fedsam_pipeline.flower.submit import submit
from fedsam_pipeline.model.registry import DEFAULT_BASE_MODEL, base_model_spec
from fedsam_pipeline.paths import DATASET_PATTERN
from fedsam_pipeline.pipeline.federation_server import REQUEST_KEY, FederationRequest
from fedsam_pipeline.pipeline.quorum import real_quorum
from fedsam_pipeline.pipeline.train_request import TrainRequest, with_aggregation
from fedsam_pipeline.specs.plans import check_plans_name
from fedsam_pipeline.specs.recipe import load_recipe


def submit_federation(superlink: str, dataset: str | None, sites: Sequence[str] | None, request: TrainRequest) -> None:
    """Submits a training and follows it to its end.

    Args:
        superlink: name of the connection in Flower's configuration.
        dataset: name of the dataset's folder.
        sites: names of the sites; ``None``: all that are registered.
        request: the other flags.

    Raises:
        FedsamError: a flag is missing or makes no sense here, the server does not answer, or the run failed.
    """
    faults = []
    if dataset is None or DATASET_PATTERN.match(dataset) is None:
        faults.append(f"-d {dataset}: the full name is needed, such as Dataset001_Demo")
    if request.protocol != "federated":
        faults.append(f"--protocol {request.protocol}: hospitals train together")
    if request.init is not None:
        faults.append("--init: the sites do not have that folder")
    if request.interpolate is not None:
        faults.append("--interpolate: for one site that goes on alone")
    if re.fullmatch(r"all|\d{1,3}", request.fold) is None:
        faults.append(f"-f {request.fold}: each site has its own folds, 0 to 4, or all")
    simulated = {"--workers": request.workers, "--compile": request.compiled, "-gpu_memory_target": request.gpu_memory_target}
    faults += [f"{flag}: of the simulation; each site computes as its own machine says" for flag, value in simulated.items() if value]
    if request.device != "auto":
        faults.append('-device: each site has its own (device="cpu" in its --node-config)')
    check_plans_name(request.plans_name)
    if faults:
        raise FedsamError(
            "these flags do not make a federation", found="; ".join(faults), expected="-d in full and no such flag", fix="mend them"
        )
    recipe = load_recipe(request.recipe)
    resolved = with_aggregation(recipe, request)  # refuses here what the server would refuse
    model = request.base_model or DEFAULT_BASE_MODEL
    base_model_spec(model)

    def configuration(names: tuple[str, ...]) -> dict[str, str]:
        quorum = real_quorum(resolved.aggregation, request.min_sites, len(names))  # before any site is asked
        request.privacy(resolved, request.rounds or 1, len(names))
        if request.encrypt:
            require_enough_to_encrypt(len(names), quorum)
        return {REQUEST_KEY: FederationRequest(str(dataset), names, request, recipe.to_dict(), model).to_json()}

    submit(superlink, sites, configuration)
