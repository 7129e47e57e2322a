"""What ``fedsam_info`` prints: the JSON value of ``pipeline/info.py`` as one screen."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Record = dict[str, Any]
SHOWN_LINES = 12
"""of datasets, and of runs, that the screen has room for"""
SHOWN_FAULT = 160
"""letters of a fault"""
_WIDTH = 13


def info_text(info: Record) -> str:
    """Lines of text, one section after the other. Faults begin with ``FAULT``."""
    sections = (
        ("versions", _versions(info["versions"])),
        ("device", _device(info["device"])),
        ("base weights", _cache(info["cache"])),
        ("folders", _folders(info["folders"])),
        ("datasets", _cut(info["datasets"], _dataset, "none yet: fedsam_make_demo_dataset makes one")),
        ("trained", _cut(info["models"], _run, "none yet: fedsam_train_federated, or fedsam_import_model")),
    )
    lines = []
    for title, body in sections:
        for number, line in enumerate(body):
            lines.append(f"{title if number == 0 else '':<{_WIDTH}} {line}".rstrip())
    return "\n".join(lines)


def _versions(versions: Record) -> Iterator[str]:
    missing = [name for name, number in versions.items() if number is None]
    there = [f"{name} {number}" for name, number in versions.items() if number is not None]
    half = (len(there) + 1) // 2
    yield ", ".join(there[:half]) + ","
    yield ", ".join(there[half:])
    if missing:
        yield f"FAULT not installed: {', '.join(missing)}"


def _device(device: Record) -> Iterator[str]:
    if "fault" in device:
        yield f"{_fault(device)}"
        return
    memory = f"{_gib(device['memory_bytes'])} memory, {_gib(device['free_memory_bytes'])} free"
    yield f"{device['processor']}, {device['cores']} core(s), {memory}, {_bfloat16(device)}{_used(device, 'cpu')}"
    for number, gpu in enumerate(device["gpus"]):
        if "fault" in gpu:
            yield f"GPU {number}: {_fault(gpu)}"
        else:
            memory = f"{_gib(gpu['memory_bytes'])} memory, {_gib(gpu['free_memory_bytes'])} free"
            yield f"GPU {number}: {gpu['name']}, {memory}, {_bfloat16(gpu)}{_used(device, 'cuda') if number == 0 else ''}"


def _bfloat16(device: Record) -> str:
    return "bfloat16" if device["bfloat16"] else "no bfloat16"


def _used(device: Record, kind: str) -> str:
    return "   <- -device auto" if device["used"] == kind else ""


def _cache(cache: Record) -> Iterator[str]:
    yield cache["folder"] + _set_by(cache)
    missing = []
    words = {"verified": "hash as it should be", "not_verified": "hash not checked (--verify)"}
    for weights in cache["weights"]:
        if "fault" in weights:
            yield f"  {weights['base_model']:<12} {_fault(weights)}"
        elif weights["state"] == "missing":
            missing.append(weights["base_model"])
        else:
            yield f"  {weights['base_model']:<12} {weights['num_bytes'] / 1e6:,.1f} MB, {weights['licence']}, {words[weights['state']]}"
    if missing:
        yield f"  not there: {', '.join(missing)} (fedsam_download_weights NAME)"


def _set_by(record: Record) -> str:
    return f" (${record['set_by']})" if record["set_by"] else " (default)"


def _folders(folders: Record) -> Iterator[str]:
    for name, folder in folders.items():
        state = f"{_fault(folder)}" if "fault" in folder else _room(folder)
        yield f"{name:<12} {folder['folder']}{_set_by(folder)}, {state}"


def _room(folder: Record) -> str:
    there = "" if folder["exists"] else "not there yet, "
    return f"{there}{_gib(folder['free_disk_bytes'])} free{'' if folder['writable'] else ', FAULT not writable'}"


def _cut(records: Sequence[Record], lines_of: Callable[[Record], Iterator[str]], none: str) -> Iterator[str]:
    """The lines of as many records as there is room for, and of every record with a fault."""
    if not records:
        yield none
    shown = hidden = 0
    for record in records:
        lines = list(lines_of(record))
        if shown and shown + len(lines) > SHOWN_LINES and not any("FAULT" in line for line in lines):
            hidden += 1
            continue
        shown += len(lines)
        yield from lines
    if hidden:
        yield f"and {hidden} more (--json shows all)"


def _fault(record: Record) -> str:
    text = str(record["fault"])
    return f"FAULT {text if len(text) <= SHOWN_FAULT else text[: SHOWN_FAULT - 3] + '...'}"


def _dataset(dataset: Record) -> Iterator[str]:
    raw = dataset["raw"]
    if raw is None:
        yield f"{dataset['name']}: no raw images here"
    elif "fault" in raw:
        yield f"{dataset['name']}: {_fault(raw)}"
    else:
        tests = f" and {raw['test_cases']} test" if raw["test_cases"] else ""
        yield (
            f"{dataset['name']}: {raw['cases']}{tests} case(s), {raw['sites']} site(s), {', '.join(raw['channels'])}, "
            f"{raw['classes']} class(es){'' if dataset['plans'] else ', not planned yet'}"
        )
    for plan in dataset["plans"]:
        if "fault" in plan:
            yield f"  {plan['name']}: {_fault(plan)}"
            continue
        spacing = " x ".join(f"{value:g}" for value in plan["target_spacing"])
        yield (
            f"  {plan['name']}: {plan['base_model']} at {plan['image_size']} px, {spacing} mm, slabs of {plan['slab_depth']}, "
            f"{plan['rounds']} x {plan['local_steps']} steps, {plan['preprocessed_cases'] or 'no'} case(s) preprocessed"
        )


def _run(run: Record) -> Iterator[str]:
    complete = [fold for fold in run["folds"] if fold.get("complete")]
    found = ""
    if complete:
        known = [fold["dice"] for fold in complete if fold["dice"] is not None]
        dice = f", Dice {sum(known) / len(known):.4f}" if known else ""
        verified = ", files verified" if all(fold["status"] == "verified" for fold in complete) else ""
        found = f": fold {' '.join(fold['fold'] for fold in complete)} complete{dice}{verified}"
    yield f"{run['dataset']}/{run['configuration']}/{run['run']}{found}"
    for fold in run["folds"]:
        if "fault" in fold:
            yield f"  fold {fold['fold']}: {_fault(fold)}"
        elif not fold["complete"]:
            of = "" if fold["rounds"] is None else f" of {fold['rounds']}"
            yield f"  fold {fold['fold']}: {fold['status']}, round {fold['rounds_done']}{of}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
