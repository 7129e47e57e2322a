"""Cross-validation folds: nnU-Net's list of ``{"train", "val"}``, stratified by site and grouped by patient."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json

FOLDS = 5
SEED = 12345
Split = dict[str, list[str]]


def make_splits(sites: Mapping[str, Sequence[str]], patients: Mapping[str, str], folds: int = FOLDS, seed: int = SEED) -> list[Split]:
    """Assigns every case to the validation set of one fold.

    Cases of one patient stay together, also across sites. Within a site each patient goes to the fold in which the site has the fewest
    cases so far, so without shared patients a site's folds differ by at most one case. A small site has no validation case in some folds.
    A site never loses all its training cases: a patient whose fold would leave a site without any (the only patient of a site) trains in
    all folds and validates in none.

    The order is drawn from SHA-256 and not from a random generator, whose streams may change between library versions.

    Args:
        sites: site to its labelled cases.
        patients: case to patient; cases that are not named are patients of their own.
        folds: how many, at least 2.
        seed: another seed gives other folds.

    Returns:
        One ``{"train": [...], "val": [...]}`` a fold, cases sorted.
    """
    if folds < 2:
        raise ValueError(f"cross-validation needs at least 2 folds, not {folds}")
    groups = _patients_of_sites(sites, patients)
    cases_of_group: dict[str, dict[str, int]] = defaultdict(dict)
    for site, members in groups.items():
        for group, cases in members.items():
            cases_of_group[group][site] = len(cases)
    fold_of: dict[str, int | None] = {}
    in_site: Counter[tuple[str, int]] = Counter()
    in_fold: Counter[int] = Counter()
    for site in sorted(groups):
        for group in sorted(groups[site], key=lambda name: (-len(groups[site][name]), _draw(seed, name))):
            if group in fold_of:
                continue
            allowed = [fold for fold in range(folds) if not any(_empties(groups[s], group, fold, fold_of) for s in cases_of_group[group])]
            chosen = min(allowed, key=lambda fold: (in_site[site, fold], in_fold[fold], fold), default=None)
            fold_of[group] = chosen
            if chosen is not None:
                for other, count in cases_of_group[group].items():
                    in_site[other, chosen] += count
                    in_fold[chosen] += count
    fold_of_case = {case: fold_of[group] for members in groups.values() for group, cases in members.items() for case in cases}
    return [
        {
            "train": sorted(case for case, where in fold_of_case.items() if where != fold),
            "val": sorted(case for case, where in fold_of_case.items() if where == fold),
        }
        for fold in range(folds)
    ]


def load_splits(path: Path, cases: Collection[str], patients: Mapping[str, str] | None = None) -> list[Split]:
    """Reads ``splits_final.json``, perhaps edited by hand.

    Args:
        path: the file.
        cases: all labelled cases of the dataset.
        patients: case to patient, where that is known.

    Raises:
        FedsamError: missing, of another shape, a case that the dataset lacks, a case or a patient both in train and val of a fold, a fold
            without training cases, or a case of the dataset that no fold names.
    """
    again = "run fedsam_plan_and_preprocess again"
    fix = f"mend the file, or delete it and {again} to draw new splits"
    content = read_json(path, fix=fix if path.exists() else again)
    shape = 'a list of {"train": ["CASE", ...], "val": ["CASE", ...]}, one a fold'
    if not isinstance(content, list) or not content or not all(_is_split(entry) for entry in content):
        raise FedsamError("the splits have another shape", path=path, expected=shape, fix=fix)
    splits: list[Split] = [{"train": sorted(entry["train"]), "val": sorted(entry["val"])} for entry in content]
    known, of_patient = set(cases), patients or {}
    faults: list[str] = []
    for fold, split in enumerate(splits):
        train, val = set(split["train"]), set(split["val"])
        faults += [f"fold {fold}: {case} is not in the dataset" for case in sorted((train | val) - known)]
        faults += [f"fold {fold}: {case} is both in train and val" for case in sorted(train & val)]
        shared = {of_patient[case] for case in train if case in of_patient} & {of_patient[case] for case in val if case in of_patient}
        faults += [f"fold {fold}: patient {patient} is both in train and val" for patient in sorted(shared)]
        faults += [f"fold {fold}: a case is listed twice"] if len(train) + len(val) < len(split["train"]) + len(split["val"]) else []
        faults += [] if train else [f"fold {fold}: train is empty"]
    named = {case for split in splits for case in (*split["train"], *split["val"])}
    faults += [f"{case} is in no fold" for case in sorted(known - named)]
    if faults:
        raise FedsamError(
            "the splits do not fit the dataset",
            path=path,
            found="; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else ""),
            expected=shape,
            fix=fix,
        )
    return splits


def _patients_of_sites(sites: Mapping[str, Sequence[str]], patients: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Site to patient to cases. A case without a patient is a patient of its own, under a name that no patient can have."""
    groups: dict[str, dict[str, list[str]]] = {}
    for site, cases in sites.items():
        members: dict[str, list[str]] = defaultdict(list)
        for case in cases:
            members[f"patient {patients[case]}" if case in patients else f"case {case}"].append(case)
        groups[site] = dict(members)
    return groups


def _empties(members: Mapping[str, Sequence[str]], group: str, fold: int, fold_of: Mapping[str, int | None]) -> bool:
    """Whether ``group`` in ``fold`` would put all patients of a site into that fold's validation set."""
    return all(other == group or (other in fold_of and fold_of[other] == fold) for other in members)


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _is_split(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), list) and all(isinstance(case, str) for case in entry[key]) for key in ("train", "val")
    )
