"""``fedsam_info``: what there is on this machine, as one JSON value. A fault of one thing never hides another: it stands in its place."""

import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.files import read_json
from fedsam_pipeline.model.bundle_check import check_fold
from fedsam_pipeline.model.checkpoints import verify_hash
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.model.registry import BASE_MODELS
from fedsam_pipeline.model.trained_files import ADAPTER_FILE, BUNDLE_FILE, MANIFEST_FILE, PLANS_FILE, RECIPE_FILE, BundleInfo
from fedsam_pipeline.model.weights import CACHE_VARIABLE, cache_folder
from fedsam_pipeline.paths import DATASET_PATTERN, data_folders
from fedsam_pipeline.pipeline.environment import PACKAGES
from fedsam_pipeline.pipeline.plans_file import load_plans
from fedsam_pipeline.preprocessing.store import store_folder
from fedsam_pipeline.specs.base_model import BaseModelSpec, WeightsSource
from fedsam_pipeline.specs.bundle_index import TRAINING_FILE
from fedsam_pipeline.specs.plans import is_plans_name
from fedsam_pipeline.specs.training_record import TrainingRecord

Record = dict[str, Any]


def collect_info(*, verify: bool = False) -> Record:
    """Versions, device, cache, folders, datasets and trained models; the keys are in ``docs/formats.md``.

    Args:
        verify: also hash the base weights, and hold every trained fold against this version of the code. Reads these files in full.
    """
    folders = data_folders()
    roots = {"raw": folders.raw, "preprocessed": folders.preprocessed, "results": folders.results}
    return {
        "schema_version": 1,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "device": _or_fault(_device),
        "cache": {
            "folder": str(cache_folder()),
            "set_by": CACHE_VARIABLE if os.environ.get(CACHE_VARIABLE) else None,
            "weights": [_weights(spec, spec.weights, verify) for spec in BASE_MODELS.values() if spec.weights is not None],
        },
        "folders": {
            name: {"folder": str(path), "set_by": None if f"fedsam_{name}" in folders.defaulted else f"fedsam_{name}"} | _room(path)
            for name, path in roots.items()
        },
        "datasets": [_dataset(folders.raw / name, folders.preprocessed / name) for name in _names(folders.raw, folders.preprocessed)],
        "models": [_run(run, verify) for run in _runs(folders.results)],
    }


def _or_fault(read: Callable[[], Record]) -> Record:
    """What ``read`` finds, or the reason why it cannot, as one line. A report of what is wrong must not end at the first thing wrong."""
    try:
        return read()
    except FedsamError as error:
        where = "" if error.path is None else f" ({Path(error.path).name})"
        found = "" if error.found is None else f": {' '.join(str(error.found).split())}"
        return {"fault": f"{error.what}{where}{found}"}
    except Exception as error:  # of drivers, permissions, and files that hold anything at all
        return {"fault": " ".join(f"{type(error).__name__}: {error}".split())}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> Record:
    memory = psutil.virtual_memory()
    capabilities = torch.cpu.get_capabilities()
    return {
        "processor": str(capabilities.get("cpu_name", platform.processor())),
        "cores": usable_cores(),
        "memory_bytes": memory.total,
        "free_memory_bytes": memory.available,
        "bfloat16": autocast_dtype(torch.device("cpu")) is not None,
        "gpus": [_or_fault(lambda number=number: _gpu(number)) for number in range(torch.cuda.device_count())],  # type: ignore[misc]
        "used": choose_device("auto").type,
    }


def _gpu(number: int) -> Record:
    free, total = torch.cuda.mem_get_info(number)
    with torch.cuda.device(number):
        bfloat16 = autocast_dtype(torch.device("cuda")) is not None
    return {"name": torch.cuda.get_device_name(number), "memory_bytes": total, "free_memory_bytes": free, "bfloat16": bfloat16}


def _weights(spec: BaseModelSpec, source: WeightsSource, verify: bool) -> Record:
    path = cache_folder() / source.file_name

    def state() -> Record:
        if not path.is_file():
            return {"state": "missing"}
        size = path.stat().st_size
        if source.num_bytes not in (None, size):
            raise FedsamError("a file of another size", path=path, found=f"{size:,} bytes, expected {source.num_bytes:,}")
        if verify:
            verify_hash(spec, path)
        return {"state": "verified" if verify else "not_verified", "num_bytes": size}

    return {"base_model": spec.name, "file": source.file_name, "licence": source.licence} | _or_fault(state)


def _room(path: Path) -> Record:
    """Whether a root folder is there, and the room on its disk (of the nearest folder above it that exists)."""

    def room() -> Record:
        there = path.absolute()
        while not there.exists():
            there = there.parent
        writable = there.is_dir() and os.access(there, os.W_OK)
        return {"exists": path.is_dir(), "writable": writable, "free_disk_bytes": shutil.disk_usage(there).free}

    return _or_fault(room)


def _names(*roots: Path) -> list[str]:
    """Dataset folders of any of the roots, whatever is in them."""
    return sorted({folder.name for root in roots for folder in _subfolders(root) if DATASET_PATTERN.match(folder.name)})


def _subfolders(folder: Path) -> list[Path]:
    """Visible folders in ``folder``; none where it cannot be listed, which ``_room`` tells."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _dataset(raw: Path, preprocessed: Path) -> Record:
    plans = sorted(preprocessed.glob("*.json")) if preprocessed.is_dir() else []
    return {
        "name": raw.name,
        "raw": _or_fault(lambda: _raw(raw)) if raw.is_dir() else None,
        "plans": [{"name": path.stem} | _or_fault(lambda path=path: _plan(path)) for path in plans if is_plans_name(path.stem)],  # type: ignore[misc]
    }


def _raw(folder: Path) -> Record:
    dataset = load_raw_dataset(folder)
    return {
        "cases": len(dataset.cases),
        "test_cases": len(dataset.test_cases),
        "sites": len(dataset.sites),
        "channels": list(dataset.channel_names),
        "classes": len(dataset.labels) - 1,
    }


def _plan(path: Path) -> Record:
    plans = load_plans(path, fix="plan again")
    store = store_folder(path.parent, plans)
    return {
        "base_model": plans.base_model,
        "image_size": plans.image_size,
        "target_spacing": list(plans.target_spacing),
        "slab_depth": plans.slab_depth,
        "rounds": plans.training.rounds,
        "local_steps": plans.training.local_steps,
        "preprocessed_cases": len(list(store.glob("*.json"))) if store.is_dir() else 0,
    }


def _runs(results: Path) -> list[Path]:
    """Folders ``DATASET/CONFIGURATION/RUN`` with a fold, finished or not."""
    datasets = [folder for folder in _subfolders(results) if DATASET_PATTERN.match(folder.name)]
    runs = [run for dataset in datasets for configuration in _subfolders(dataset) for run in _subfolders(configuration)]
    return [run for run in runs if _folds(run)]


def _folds(run: Path) -> list[Path]:
    return [folder for folder in _subfolders(run) if folder.name.startswith("fold_")]


def _run(run: Path, verify: bool) -> Record:
    dataset, configuration, name = run.parts[-3:]
    folds = [{"fold": fold.name.removeprefix("fold_")} | _or_fault(lambda fold=fold: _fold(fold, verify)) for fold in _folds(run)]  # type: ignore[misc]
    return {"dataset": dataset, "configuration": configuration, "run": name, "folds": folds}


def _fold(folder: Path, verify: bool) -> Record:
    run = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    if not isinstance(run, dict):
        raise FedsamError("a file holds no JSON object", path=folder / "run.json")
    if not (folder / BUNDLE_FILE).is_file():
        rounds = CheckpointSeries(folder / "checkpoints", "round_").rounds()
        status = run.get("status", "empty")  # "done" needs bundle.json too
        return {
            "complete": False,
            "status": "incomplete" if status == "done" else status,
            "rounds_done": rounds[-1] if rounds else 0,
            "rounds": run.get("rounds"),
        }
    info = BundleInfo.load(folder / BUNDLE_FILE)
    missing = [name for name in (ADAPTER_FILE, MANIFEST_FILE, PLANS_FILE, RECIPE_FILE) if not (folder / name).is_file()]
    if missing:
        raise FedsamError("a trained fold lacks files", path=folder, found=", ".join(missing))
    if verify:
        check_fold(folder)
    imported = TrainingRecord.load(folder / TRAINING_FILE) if (folder / TRAINING_FILE).is_file() else None
    validation = None if imported is None else imported.validation
    dice = validation.dice if validation is not None else (run.get("final") or {}).get("dice")
    return {
        "complete": True,
        "status": "verified" if verify else "done",
        "rounds_done": info.rounds_done,
        "rounds": info.rounds_done,
        "base_model": info.base_model,
        "dice": dice,
    }
