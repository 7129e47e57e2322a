"""What one site of a run starts from: its cases of the fold, its folders, its machine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.label_scheme import LabelScheme
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.model.build import ModelSetup
from fedsam_pipeline.model.device import choose_device


@dataclass(frozen=True)
class StoredDataset:
    """The preprocessed cases of one site or of all.

    Attributes:
        store: the folder.
        owner: case to site.
        labels: what the values of the masks mean.
        annotated: site to the foreground values it annotated, of the sites that did not annotate every class.
        patients: case to patient, where patients have several cases.
        num_folds: of the splits.
        privacy_floor: patients that every sum stands for which leaves a site.
    """

    store: Path
    owner: dict[str, str]
    labels: LabelScheme
    annotated: Mapping[str, tuple[int, ...]]
    patients: Mapping[str, str]
    num_folds: int
    privacy_floor: int


@dataclass(frozen=True)
class Machine:
    """What computes: see the flags of ``fedsam_train_federated``."""

    device: str
    workers: int
    memory_target: float | None = None
    """GiB"""
    compiled: bool = False


def site_setup(
    site: str, train: Iterable[str], val: Iterable[str], data: StoredDataset, model: ModelSetup, fold: Path, machine: Machine
) -> SiteSetup:
    """The setup of a site.

    Args:
        site: its name.
        train, val: its cases of the fold.
        data: where they are.
        model: what is trained.
        fold: the run's ``fold_K`` folder, or what stands for it on the site's own disk.
        machine: what computes.

    Raises:
        FedsamError: the device does not exist on this machine.
    """
    train_cases, val_cases = tuple(sorted(train)), tuple(sorted(val))
    owners = {data.owner[case] for case in (*train_cases, *val_cases)}
    name = fold.name.removeprefix("fold_")
    return SiteSetup(
        site=site,
        store_folder=data.store.absolute(),
        train_cases=train_cases,
        val_cases=val_cases,
        owner=data.owner,
        model=model,
        state_folder=(fold / "sites" / site).absolute(),
        device=choose_device(machine.device).type,
        compiled=machine.compiled,
        num_threads=max(1, usable_cores() // machine.workers),
        execution_file=(fold / "execution" / f"{site}.json").absolute(),
        memory_target=None if machine.memory_target is None else int(machine.memory_target * (1 << 30)),
        workers=machine.workers,
        annotated={owner: values for owner, values in data.annotated.items() if owner in owners},
        regions=data.labels.regions,
        fold=name,
        other_folds={
            other: (fold.parent / f"fold_{other}" / "sites" / site).absolute() for other in map(str, range(data.num_folds)) if other != name
        },
        patients={case: patient for case, patient in data.patients.items() if data.owner.get(case) in owners},
        privacy_floor=data.privacy_floor,
    )
