"""``fedsam_doctor``: versions, environment, disk, base weights, GPU and data of this machine."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.findings import Finding, Severity
from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower import QUIET_ENVIRONMENT
from fedsam_pipeline.model.checkpoints import verify_hash
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.weights import find_weights
from fedsam_pipeline.paths import choose_dataset, data_folders, dataset_id, list_datasets
from fedsam_pipeline.pipeline.doctor_findings import DoctorFinding, Level, from_error, ok, problem, unchecked, warning
from fedsam_pipeline.pipeline.integrity import examine_dataset
from fedsam_pipeline.preprocessing.budget import default_processes
from fedsam_pipeline.preprocessing.workers import CaseWorkers

FULL_BYTES = 1 << 30
"""less is a problem: a preprocessed store or a checkpoint may not fit"""
SCARCE_BYTES = 10 << 30
"""less is worth a warning"""
SHOWN = 10
"""findings of the data that are printed one by one"""


def installed(name: str) -> str | None:
    """A distribution's version, ``None`` where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def version_findings(requirements: list[str] | None = None, version_of: Callable[[str], str | None] = installed) -> Iterator[DoctorFinding]:
    """Every package that ours names, against the range it names. Flower's is one minor: peers of another one are refused."""
    wanted = [Requirement(text) for text in (requires("fedsam-pipeline") or [] if requirements is None else requirements)]
    needed = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    faults = 0
    for each in needed:
        found = version_of(each.name)
        if found is None or not each.specifier.contains(found, prereleases=True):
            faults += 1
            text = f"{each.name} {found or 'is not installed'}, expected {each.specifier or 'any version'}"
            yield problem("versions", text, "install the versions of requirements.lock: pip install -r requirements.lock")
    if not faults:
        shown = ", ".join(f"{name} {version_of(name)}" for name in ("fedsam-pipeline", "flwr", "torch"))
        yield ok("versions", f"Python {sys.version.split()[0]}, {shown}; all {len(needed)} packages in their ranges")


def environment_findings(environment: Mapping[str, str], source: str) -> Iterator[DoctorFinding]:
    """Whether Flower or Ray would call home, or install packages.

    Args:
        environment: the variables.
        source: where they are set, for the fix.
    """
    loud = [f"{name}={environment[name]}" for name, quiet in QUIET_ENVIRONMENT.items() if environment.get(name, quiet) != quiet]
    if loud:
        text = f"{', '.join(loud)}: Flower or Ray may call home, or install what an app names"
        yield warning("environment", text, f"remove these from {source}: our commands switch it off")
    else:
        yield ok("environment", "no telemetry, no update check, no installing at run time, no usage statistics")


def disk_findings(folders: Mapping[str, Path], free_bytes: Callable[[Path], int]) -> Iterator[DoctorFinding]:
    """Whether each folder can be written to, and the room on its disk.

    Args:
        folders: word to folder; one that is not there yet is judged by the nearest above it.
        free_bytes: of the disk of a folder that is there.
    """
    for name, folder in folders.items():
        subject = f"disk, {name}"
        there = folder.absolute()
        try:
            while not there.exists():
                there = there.parent
            free = free_bytes(there)
        except OSError as error:
            yield problem(subject, f"{folder}: {error}", "check that the disk is mounted, and that this user may look there")
            continue
        room = f"{free / 2**30:,.1f} GiB free"
        if not (there.is_dir() and os.access(there, os.W_OK)):
            yield problem(subject, f"{folder} cannot be written to", f"make {there} writable for this user, or set another folder")
        elif free < FULL_BYTES:
            yield problem(subject, f"{folder}: {room}", f"free some space, or move the folder (at least {FULL_BYTES >> 30} GiB)")
        elif free < SCARCE_BYTES:
            yield warning(subject, f"{folder}: {room}", f"free some space: {SCARCE_BYTES >> 30} GiB leave room for a store and its runs")
        else:
            yield ok(subject, f"{folder}: {room}")


def free_disk_bytes(folder: Path) -> int:
    """Room for an ordinary user on the disk of ``folder``."""
    return shutil.disk_usage(folder).free


def weight_findings(base_model: str) -> Iterator[DoctorFinding]:
    """The base weights in the cache: there, and of the right hash. Reads them in full."""
    try:
        spec = base_model_spec(base_model)
        path = find_weights(spec)
        if path is None:
            yield ok("base weights", f"{base_model} needs none")
            return
        verify_hash(spec, path)
    except FedsamError as error:
        yield from_error("base weights", error)
    except OSError as error:
        yield problem("base weights", f"cannot be read: {error}", "check the permissions of the file")
    else:
        yield ok("base weights", f"{path}, SHA-256 as expected")


def gpu_findings() -> Iterator[DoctorFinding]:
    """What PyTorch would compute on. None is needed."""
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            try:
                name = torch.cuda.get_device_name(number)
                free, total = torch.cuda.mem_get_info(number)
            except RuntimeError as error:
                fix = "see in nvidia-smi which process holds it; CUDA_VISIBLE_DEVICES=-1 leaves it alone and trains on the cores"
                yield warning("GPU", f"GPU {number} does not answer: {str(error).partition(chr(10))[0]}", fix)
            else:
                yield ok("GPU", f"{name}, {free / 2**30:,.1f} of {total / 2**30:,.1f} GiB free")
    elif shutil.which("nvidia-smi"):
        built = torch.version.cuda or "no CUDA"
        fix = "check that nvidia-smi works, and install PyTorch's build for its CUDA version"
        yield warning("GPU", f"there is NVIDIA's driver, but PyTorch (built for {built}) sees no GPU", fix)
    else:
        yield ok("GPU", f"none; training takes {usable_cores()} core(s)")


def data_findings(identifier: str | None, site: str | None) -> Iterator[DoctorFinding]:
    """All integrity checks of one raw dataset, and whether it has cases of this site. Writes nothing.

    Args:
        identifier: as of ``-d``; ``None`` takes the only dataset there is.
        site: the site's name, ``None`` where it is not known.
    """
    raw = data_folders().raw
    if identifier is None and not list_datasets(raw, "dataset.json"):
        yield unchecked("data", f"there is no dataset in {raw}")
        return
    try:
        dataset = load_raw_dataset(choose_dataset(raw, identifier, stage="raw", fix="put the dataset there, or give its number"))
        if site is not None and site not in dataset.sites:
            found = f"{dataset.name} has cases of {', '.join(dataset.sites)}, none of {site}"
            yield problem("data", found, f'name the site in site.toml (site = "{site}"), or in sites of dataset.json')
        yield from _integrity(dataset)
    except FedsamError as error:
        yield from_error("data", error)


def _integrity(dataset: RawDataset) -> Iterator[DoctorFinding]:
    with CaseWorkers(default_processes(dataset)) as workers:
        report, _ = examine_dataset(dataset, workers)
    for finding in report.findings[:SHOWN]:
        yield _of(finding)
    all_of_them = f"fedsam_plan_and_preprocess -d {dataset_id(dataset.name)} --verify_dataset_integrity"
    if len(report.findings) > SHOWN:
        level = Level.PROBLEM if any(finding.severity is Severity.ERROR for finding in report.findings[SHOWN:]) else Level.WARNING
        yield DoctorFinding(level, "data", f"and {len(report.findings) - SHOWN} more", f"{all_of_them} lists all in integrity.json")
    if not report.findings:
        yield ok("data", f"{dataset.name}: {report.num_cases} cases, {len(report.checks)} checks, no fault")


def _of(finding: Finding) -> DoctorFinding:
    level = Level.PROBLEM if finding.severity is Severity.ERROR else Level.WARNING
    shown = from_error("data", finding.error(), level=level)
    owner = f"{finding.case}: " if finding.case else ""
    return DoctorFinding(level, "data", f"{owner}{shown.text}", shown.fix)
