"""What leaves each site, written; or shown only (``--dry_run``)."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.planning.measures import SiteMeasures
from fedsam_pipeline.planning.merge import merge_fingerprints
from fedsam_pipeline.planning.privacy import DEFAULT_FLOOR, Released, release
from fedsam_pipeline.specs.fingerprint import Fingerprint

FOLDER = "fingerprints"


def write_fingerprints(dataset: RawDataset, measured: Mapping[str, SiteMeasures], privacy_floor: int | None, folder: Path) -> Fingerprint:
    """Writes what leaves each site to ``fingerprints/SITE.json``, and the merged ``fingerprint.json``; says what is held back.

    Args:
        dataset: the dataset.
        measured: by site.
        privacy_floor: patients that every number stands for. ``None``: ``DEFAULT_FLOOR``, or 1 where there is one site only.
        folder: the preprocessed dataset.

    Raises:
        FedsamError: no site has enough cases to release anything.
    """
    if privacy_floor is None and len(measured) == 1:
        print("one site: nothing leaves the building, so the privacy floor does not apply")
    released = _release(dataset, measured, _floor(privacy_floor, measured))
    fingerprints = {site: each.document for site, each in released.items() if isinstance(each.document, Fingerprint)}
    if not fingerprints:
        raise FedsamError(
            "there is nothing to plan from: every site has too few cases for its privacy floor",
            path=dataset.folder,
            found=", ".join(f"{site} {measured[site].num_cases}" for site in sorted(measured)),
            expected=f"a site with {_floor(privacy_floor, measured)} cases, of as many patients",
            fix="add cases; or, where all the data are your own and nothing leaves the building: --privacy_floor 1",
        )
    _save(released, folder / FOLDER)
    _say_what_is_held_back(released)
    merged = merge_fingerprints(fingerprints)
    merged.save(folder / "fingerprint.json")
    return merged


def release_site(dataset: RawDataset, measured: SiteMeasures, privacy_floor: int | None, folder: Path) -> Path:
    """Writes what leaves the only site of a dataset that takes part in a federation; says what is held back.

    Args:
        dataset: of this site.
        measured: all its cases.
        privacy_floor: patients that every number stands for; ``None``: ``DEFAULT_FLOOR``.
        folder: the preprocessed dataset.

    Returns:
        ``fingerprints/SITE.json``.
    """
    (site,) = dataset.sites
    released = {site: release(measured, privacy_floor or DEFAULT_FLOOR, cases_a_patient=_cases_a_patient(dataset, site))}
    _save(released, folder / FOLDER)
    _say_what_is_held_back(released)
    return folder / FOLDER / f"{site}.json"


def show_fingerprints(dataset: RawDataset, measured: Mapping[str, SiteMeasures], privacy_floor: int | None, folder: Path) -> None:
    """Prints the bytes that ``write_fingerprints`` would write for each site, kept in ``dry_run/SITE.json``; arguments as there."""
    if privacy_floor is None and len(measured) == 1:
        print(f"one site: nothing would leave the building. With --privacy_floor {DEFAULT_FLOOR}: what would, in a federation")
        _save({}, folder / "dry_run")
        return
    released = _release(dataset, measured, _floor(privacy_floor, measured))
    _save(released, folder / "dry_run")
    for site in released:
        path = folder / "dry_run" / f"{site}.json"
        content = path.read_text(encoding="utf-8")
        print(f"\n{site}: these {path.stat().st_size} bytes would leave, and nothing else ({path})\n{content}", end="")
    print()
    _say_what_is_held_back(released)
    print("dry run: nothing was planned")


def _floor(privacy_floor: int | None, measured: Mapping[str, SiteMeasures]) -> int:
    return privacy_floor or (DEFAULT_FLOOR if len(measured) > 1 else 1)


def _release(dataset: RawDataset, measured: Mapping[str, SiteMeasures], floor: int) -> dict[str, Released]:
    return {site: release(measured[site], floor, cases_a_patient=_cases_a_patient(dataset, site)) for site in sorted(measured)}


def _cases_a_patient(dataset: RawDataset, site: str) -> int:
    """The most cases that a patient of the site has."""
    return max(Counter(dataset.patients.get(case, f"case {case}") for case in dataset.sites[site]).values())


def _save(released: Mapping[str, Released], folder: Path) -> None:
    """One file a site; those of sites that are no more are removed."""
    for stale in folder.glob("*.json"):
        if stale.stem not in released:
            stale.unlink()
    for site, each in released.items():
        each.document.save(folder / f"{site}.json")


def _say_what_is_held_back(released: Mapping[str, Released]) -> None:
    for site, each in released.items():
        for words in each.held_back:
            print(f"{site} holds back {words}")
        if not isinstance(each.document, Fingerprint):
            print(f"{site} takes part all the same: it uses the plan that the other sites' fingerprints give (docs/privacy.md)")
