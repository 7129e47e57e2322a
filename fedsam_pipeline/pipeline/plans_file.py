"""A plan from the preprocessed folder, perhaps edited by hand: all that is wrong with it is said at once, before any long work."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.plan_rules import BASE_MODEL_RULES
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.paths import DataFolders, choose_dataset, data_folders, dataset_id, list_datasets
from fedsam_pipeline.planning.geometry_rules import triplanar
from fedsam_pipeline.planning.rules import make_plan
from fedsam_pipeline.planning.table import planned_values
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.specs.document import Rule
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.plans import Plans, check_plans_name, is_plans_name


def choose_planned(root: Path, identifier: str | None, name: str) -> Path:
    """The folder of one preprocessed dataset that has a plan ``name``.

    Args:
        root: the folder of all preprocessed datasets.
        identifier: see ``choose_dataset``; ``None`` takes the only dataset that has such a plan.
        name: of the plan.

    Raises:
        FedsamError: no plan can be called so, there is no such dataset, or several and no identifier; or the dataset has only other plans.
    """
    check_plans_name(name)
    only_with_it = identifier is None and list_datasets(root, f"{name}.json")
    command = "fedsam_plan_and_preprocess"
    marker = f"{name}.json" if only_with_it else "*.json"  # any plan, to say which there are
    folder = choose_dataset(root, identifier, marker=marker, stage="planned", fix=f"plan and preprocess it first: {command}")
    if not (folder / f"{name}.json").exists():
        there = sorted(path.stem for path in folder.glob("*.json") if is_plans_name(path.stem))
        raise FedsamError(
            f"{folder.name} has no plan of this name",
            path=folder / f"{name}.json",
            found=f"plans {', '.join(there)}" if there else "no plan",
            fix=f"give another name to -p, or make the plan: {command} -d {dataset_id(folder.name)} -p {name}",
        )
    return folder


def planned_dataset(identifier: str | None, name: str) -> tuple[DataFolders, Path]:
    """The data folders, and the preprocessed one of the dataset that a command works on; says on its first lines which they are.

    Arguments and errors as of :func:`choose_planned`.
    """
    folders = data_folders()
    if notice := folders.notice():
        print(notice)
    preprocessed = choose_planned(folders.preprocessed, identifier, name)
    print(f"dataset {preprocessed.name}")
    return folders, preprocessed


def load_plans(path: Path, *, fix: str, labels: Mapping[str, int] | None = None, channel_names: Sequence[str] | None = None) -> Plans:
    """Reads ``NAME.json`` of a preprocessed dataset.

    Args:
        path: the file.
        fix: what the user should do where it is missing or wrong.
        labels: class name to value, background included, as the dataset has them; ``None`` where the plan may be of another dataset.
        channel_names: of the dataset, in order; ``None`` likewise.

    Raises:
        FedsamError: missing, broken, or with keys that are unknown, missing, of another type, out of range, contradicting each other, the
            base model or the dataset; every one of them is named.
    """

    def place_faults(plans: Plans) -> Iterator[str]:
        for key, here, there in (("plans_name", plans.plans_name, path.stem), ("dataset_name", plans.dataset_name, path.parent.name)):
            if here != there:
                yield f"{key}: {here}, but the file is {path.parent.name}/{path.name}"

    def label_faults(plans: Plans) -> Iterator[str]:
        if labels is not None and plans.labels != labels:
            yield f"labels: {plans.labels}, but dataset.json has {dict(labels)}; labels are changed in the raw dataset"

    def channel_faults(plans: Plans) -> Iterator[str]:
        names = [channel.name for channel in plans.channels]
        if channel_names is not None and names != list(channel_names):
            yield f"channels: {', '.join(names)}, but dataset.json has {', '.join(channel_names)}"

    rules = (
        *BASE_MODEL_RULES,
        Rule(("plans_name", "dataset_name"), place_faults),
        Rule(("labels",), label_faults),
        Rule(("channels",), channel_faults),
    )
    return Plans.load(path, fix=fix, rules=rules)


def check_triplanar(plans: Plans, path: Path) -> None:
    """Refuses the configuration ``triplanar`` where voxels are too long. ``path`` is the plan's, for the message.

    Raises:
        FedsamError: the plan does not offer it.
    """
    rules = load_thresholds().triplanar
    offer = triplanar(plans.target_spacing, rules)
    if not offer.value:
        raise FedsamError(
            "this plan does not offer the configuration triplanar",
            path=path,
            found=offer.why,
            expected=f"target spacings within {rules.max_spacing_ratio:g} times of each other",
            fix="train with -c main, or plan with nearly equal lengths: -overwrite_target_spacing Z Y X -overwrite_plans_name NAME",
        )


def changed_values(kept: Plans, made: Plans) -> list[str]:
    """Names of the planned values in which two plans differ."""
    before, after = planned_values(kept), planned_values(made)
    return [name for name in before if name not in after or before[name] != after[name]] + [name for name in after if name not in before]


def unedited_plan(folder: Path, name: str) -> Plans | None:
    """What the planner made when it wrote ``NAME.json``: planned again from the fingerprint beside it.

    ``None`` where there is no such plan, where it was made from another fingerprint than the one beside it, or where that cannot be read:
    then nobody knows, and the plan counts as edited.
    """
    path, measured = folder / f"{name}.json", folder / "fingerprint.json"
    if not (path.exists() and measured.exists()):
        return None
    kept = Plans.load(path)
    try:
        fingerprint = Fingerprint.load(measured)
    except FedsamError:  # an older version wrote it; this run writes it anew
        return None
    if fingerprint.sha256() != kept.fingerprint_sha256:
        return None
    return make_plan(fingerprint, base_model_spec(kept.base_model), plans_name=name)


def set_aside(plans: Plans, folder: Path) -> Path:
    """Saves a plan as ``NAME.before.json``, or ``NAME.before2.json`` and so on: no earlier one is overwritten."""
    names = (f"{plans.plans_name}.before{number if number > 1 else ''}.json" for number in count(1))
    path = next(folder / name for name in names if not (folder / name).exists())
    plans.save(path)
    return path
