"""``fedsam_evaluate``: scores a folder of predicted masks against reference masks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fedsam_pipeline.dataset.label_scheme import IGNORE_NAME, LabelScheme, read_label_scheme
from fedsam_pipeline.dataset.raw import ONLY_SITE, RawDataset
from fedsam_pipeline.dataset.raw_checks import read_site_labels
from fedsam_pipeline.dataset.site_mapping import SiteMapping, identity, read_mapped_labels, read_site_mapping
from fedsam_pipeline.dataset.volume import FILE_ENDINGS, SAME_GRID_MM, Volume, describe_difference, read_labels, split_file_ending
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.evaluation.case_metrics import MetricSettings, measure
from fedsam_pipeline.evaluation.composite import KIDNEY, TUMOR, fed_kits
from fedsam_pipeline.evaluation.metrics import counts
from fedsam_pipeline.evaluation.score_table import cases_csv, scores_csv
from fedsam_pipeline.evaluation.scores import score_metrics
from fedsam_pipeline.evaluation.summary import CaseScore, summarize
from fedsam_pipeline.evaluation.surface import hd95_of_labels
from fedsam_pipeline.files import read_json, write_json, write_text

log = logging.getLogger(__name__)
DEFAULT_SETTINGS = MetricSettings()


@dataclass(frozen=True)
class Reference:
    """What predictions are held against.

    Attributes:
        masks: case -> reference mask.
        sites: case -> site.
        labels: what the values of a mask mean.
        annotated: site -> the foreground values it annotated, of the sites that did not annotate all.
        mapping: from the values of the reference masks to those of ``labels``; predictions hold the latter.
    """

    masks: dict[str, Path]
    sites: dict[str, str]
    labels: LabelScheme
    annotated: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mapping: SiteMapping = field(default_factory=lambda: identity(1))


def evaluate(
    reference: Path,
    prediction: Path,
    *,
    dataset_json: Path | None = None,
    output: Path | None = None,
    allow_missing: bool = False,
    settings: MetricSettings = DEFAULT_SETTINGS,
    composite: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Scores every reference case and writes ``summary.json``, ``summary.csv`` and ``summary_means.csv``.

    Args:
        reference: a raw dataset folder (``labelsTs`` is used where it holds the predicted cases, else ``labelsTr``) or a folder of masks.
        prediction: folder of predicted masks, named like the references.
        dataset_json: label names and sites; ``None`` looks in ``reference`` and in its parent.
        output: the JSON file to write; ``None`` is ``summary.json`` in ``prediction``. The CSV files lie beside it (:func:`csv_paths`).
        allow_missing: score only the cases that were predicted.
        settings: tolerances and thresholds of the metrics.
        composite: FLamby's Fed-KiTS composite too.

    Returns:
        The summary and the file it stands in.

    Raises:
        FedsamError: a folder or file is missing or empty, a case was not predicted, grids differ, a mask holds a value that it must not,
            or the composite is asked for and the labels are not those of KiTS. Nothing is written then.
    """
    path = prediction / "summary.json" if output is None else output
    if path.suffix == ".csv":
        raise FedsamError(
            "the summary is JSON", path=path, expected="a name such as scores.json", fix="scores.csv is then written beside it"
        )
    predicted = find_masks(prediction)
    known = load_reference(reference, set(predicted), dataset_json)
    if composite:
        _check_kits(known.labels, reference)
    missing = sorted(known.masks.keys() - predicted.keys())
    if missing and not allow_missing:
        raise FedsamError(
            f"{len(missing)} of {len(known.masks)} reference cases were not predicted",
            path=prediction,
            found=f"no mask for {_few(missing)}",
            expected="one predicted mask for every reference mask, of the same name",
            fix="predict them, or add --chill to score only the cases that are there",
        )
    unknown = sorted(predicted.keys() - known.masks.keys())
    if unknown:
        log.warning("not scored, because no reference mask has their name: %s", _few(unknown))
    cases = sorted(known.masks.keys() & predicted.keys())
    if not cases:
        raise FedsamError(
            "no prediction has the name of a reference mask",
            path=prediction,
            found=_few(sorted(predicted)),
            expected=f"names such as {_few(sorted(known.masks))}",
            fix="check that both folders belong to the same dataset",
        )
    scores = [
        score_case(case, known.masks[case], predicted[case], known, settings, composite=composite)
        for case in tqdm(cases, desc="evaluating", unit="case", disable=None)
    ]
    scored = known.labels.scored
    keys = [values[0] if len(values) == 1 else str(values) for values in scored.values()]  # nnU-Net calls a region (1, 2, 3)
    summary = summarize(scores, tuple(scored), keys) | score_metrics(scores, tuple(scored), settings)
    cases_path, means_path = csv_paths(path)
    write_text(cases_path, cases_csv(summary))
    write_text(means_path, scores_csv(summary))
    write_json(path, summary)
    return summary, path


def csv_paths(summary: Path) -> tuple[Path, Path]:
    """The CSV files beside a summary: of the cases, and of the means. They are called like it: ``summary.csv``, ``summary_means.csv``."""
    return summary.with_suffix(".csv"), summary.with_name(f"{summary.stem}_means.csv")


def score_case(
    case: str, reference: Path, prediction: Path, known: Reference, settings: MetricSettings | None = None, *, composite: bool = False
) -> CaseScore:
    """Reads and scores one case; raises as :func:`score_masks`."""
    return score_masks(case, reference, prediction, read_labels(prediction), known, settings, composite=composite)


def score_masks(
    case: str,
    reference: Path,
    prediction: Path,
    found: Volume,
    known: Reference,
    settings: MetricSettings | None = None,
    *,
    composite: bool = False,
) -> CaseScore:
    """Scores a predicted mask against the reference mask, which is read.

    Args:
        case: its name.
        reference: file of the reference mask.
        prediction: where the predicted mask stands, or where it comes from; for messages and the summary.
        found: the predicted mask, on its own grid.
        known: sites, labels and mapping.
        settings: of the further metrics; ``None``: counts and HD95 alone.
        composite: FLamby's Fed-KiTS composite too; the labels must be those of KiTS.

    Raises:
        FedsamError: the two grids differ, or a mask holds a value that no label has, or one of a class that its site did not annotate;
            names the case.
    """
    truth = read_mapped_labels(reference, known.mapping)
    if not truth.geometry.same_grid(found.geometry, SAME_GRID_MM):
        raise FedsamError(
            f"case {case}: the prediction has another grid than the reference",
            path=prediction,
            found=describe_difference(found.geometry, truth.geometry),
            expected=f"the grid of {reference}, within {SAME_GRID_MM} mm",
            fix="predict the image that the reference was drawn on; fedsam_predict keeps its grid",
        )
    labels = known.labels
    names = {value: name for name, value in labels.classes.items()}
    in_reference = names if labels.ignore is None else names | {labels.ignore: IGNORE_NAME}
    for path, volume, allowed in ((reference, truth, in_reference), (prediction, found, names)):
        strange = [int(value) for value in np.unique(volume.array) if int(value) not in allowed]
        if strange:
            raise FedsamError(
                f"case {case}: a mask holds values that no label has",
                path=path,
                found=strange,
                expected=f"0 to {max(allowed)} ({', '.join(allowed.values())})",
                fix="mend the mask, or name these labels in dataset.json",
            )
    site = known.sites[case]
    annotated = None
    if site in known.annotated:
        _check_annotated(case, reference, truth.array, site, known)
        annotated = labels.scorable(known.annotated[site])
    groups = list(labels.scored.values())
    spacing, ignore = truth.geometry.spacing, labels.ignore
    table = counts(truth.array, found.array, len(labels.classes), groups=groups, ignore=ignore)
    if settings is None:
        further = {}
        distances = hd95_of_labels(truth.array, found.array, groups, spacing, ignore=ignore)
    else:
        further = measure(truth.array, found.array, groups, spacing, settings, ignore=ignore)
        distances = further.pop("HD95")
    return CaseScore(
        case,
        site,
        str(reference),
        str(prediction),
        table,
        num_voxels=int(truth.array.size if ignore is None else np.count_nonzero(truth.array != ignore)),
        hd95=distances,
        annotated=annotated,
        further=further,
        spacing=spacing,
        fed_kits=_composite(truth.array, found.array, site, known) if composite else None,
    )


def _composite(truth: NDArray[Any], found: NDArray[Any], site: str, known: Reference) -> float:
    """NaN where the site did not annotate kidney and tumor both."""
    if not {KIDNEY, TUMOR} <= set(known.annotated.get(site, (KIDNEY, TUMOR))):
        return float("nan")
    return fed_kits(truth, found, ignore=known.labels.ignore)


def _check_kits(labels: LabelScheme, reference: Path) -> None:
    """The composite is defined for two classes, whatever they are called: 1 within which 2 lies."""
    values = sorted(labels.classes.values())
    if values != [0, KIDNEY, TUMOR]:
        raise FedsamError(
            "the Fed-KiTS composite does not fit these labels",
            path=reference,
            found=", ".join(f"{name} {value}" for name, value in labels.classes.items()),
            expected=f"background 0, kidney {KIDNEY}, tumor {TUMOR}",
            fix="leave out --fed_kits; all other metrics are for any labels",
        )


def _check_annotated(case: str, reference: Path, truth: NDArray[Any], site: str, known: Reference) -> None:
    """A reference mask that holds what ``site_labels`` denies would be scored wrongly."""
    foreign = sorted({int(value) for value in np.unique(truth)} - {0, known.labels.ignore, *known.annotated[site]})
    if foreign:
        raise FedsamError(
            f"case {case}: the reference mask holds classes that its site says it did not annotate",
            path=reference,
            found=f"label value {', '.join(map(str, foreign))}",
            expected=f"0 and {', '.join(map(str, known.annotated[site]))}, after site_labels of {site}",
            fix=f"mend the mask, or score with --dataset_json and a file whose site_labels names the class for {site}",
        )


def find_masks(folder: Path) -> dict[str, Path]:
    """Case name -> mask file of a folder.

    Raises:
        FedsamError: the folder is missing or holds no mask, or two files carry one name.
    """
    if not folder.is_dir():
        raise FedsamError("a folder is missing", path=folder, expected="a folder of masks", fix="check the path")
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        parts = split_file_ending(path.name)
        if parts is None or path.name.startswith("."):
            continue
        case = parts[0]
        if case in masks:
            raise FedsamError(
                f"case {case} has two masks in one folder",
                path=folder,
                found=f"{masks[case].name} and {path.name}",
                fix="keep one of them",
            )
        masks[case] = path
    if not masks:
        raise FedsamError("a folder holds no mask", path=folder, expected=f"files that end in {', '.join(FILE_ENDINGS)}")
    return masks


def load_reference(folder: Path, predicted: set[str], dataset_json: Path | None) -> Reference:
    """Finds the reference masks, the label names and the sites.

    Raises:
        FedsamError: as :func:`evaluate`.
    """
    if not folder.is_dir():
        raise FedsamError(
            "the reference folder is missing", path=folder, expected="a raw dataset folder or a folder of masks", fix="check the path"
        )
    own = folder / "dataset.json"
    masks_folder = _labels_folder(folder, predicted)
    path = dataset_json or next((p for p in (own, folder.parent / "dataset.json") if p.is_file()), None)
    if path is None:
        raise FedsamError(
            "label names are not known",
            path=folder,
            found="no dataset.json in the reference folder or beside it",
            fix="name one with --dataset_json FILE",
        )
    content = read_json(path, fix="check --dataset_json")
    masks = find_masks(masks_folder)
    labels = _labels(content, path)
    sites = _sites(content, masks, masks_folder, path)
    known_sites = {*sites.values(), *content.get("sites", {}), *content.get("test_sites", {})}
    annotated = labels.annotated(read_site_labels(content, path, known_sites, labels))
    mapping = read_site_mapping(masks_folder.parent, labels, tuple(content.get("channel_names", {}).values()))
    return Reference(masks, sites, labels, annotated, mapping)


def reference_of(raw: RawDataset, cases: Sequence[str]) -> Reference:
    """The reference masks of labelled cases of a raw dataset."""
    labels = raw.label_scheme
    masks, sites = {case: raw.label_path(case) for case in cases}, {case: raw.site_of(case) for case in cases}
    return Reference(masks, sites, labels, labels.annotated(raw.site_labels), raw.mapping)


def _labels_folder(folder: Path, predicted: set[str]) -> Path:
    """``labelsTs`` or ``labelsTr`` of a raw dataset, whichever holds more of the predicted cases; else the folder itself."""
    candidates = [folder / name for name in ("labelsTr", "labelsTs") if (folder / name).is_dir()]
    if not candidates:
        return folder
    return max(candidates, key=lambda path: len(predicted & find_masks(path).keys()) if any(path.iterdir()) else -1)


def _labels(content: Any, path: Path) -> LabelScheme:
    if not isinstance(content, dict) or "labels" not in content:
        raise FedsamError(
            "label names are not known",
            path=path,
            found="no labels in this file",
            expected='"labels": {"background": 0, "liver": 1}',
            fix="add them, or name another file with --dataset_json FILE",
        )
    return read_label_scheme(content, path)


def _sites(content: Mapping[str, Any], masks: Mapping[str, Path], masks_folder: Path, path: Path) -> dict[str, str]:
    """Case -> site. ``test_sites`` is asked first for ``labelsTs``, ``sites`` for any other folder; further cases do not matter."""
    keys = ("test_sites", "sites") if masks_folder.name == "labelsTs" else ("sites", "test_sites")
    known: dict[str, str] = {}
    for key in keys:
        owners = _owners(content.get(key, {}), key, path)
        known = owners | known
    without = sorted(masks.keys() - known.keys())
    if len(without) == len(masks):
        return dict.fromkeys(masks, ONLY_SITE)
    if without:
        raise FedsamError(
            "reference cases belong to no site",
            path=path,
            found=_few(without),
            expected=f"every case of {masks_folder.name} under one site of {' or '.join(keys)}",
            fix="name their site in dataset.json",
        )
    return {case: known[case] for case in masks}


def _owners(value: Any, key: str, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(names, list) for names in value.values()):
        raise FedsamError(
            f"{key} is not usable", path=path, found=value, expected=f'"{key}": {{"site_a": ["CASE", ...]}}', fix="mend the file"
        )
    owners: dict[str, str] = {}
    for site, names in value.items():
        for name in names:
            if owners.setdefault(name, site) != site:
                raise FedsamError(
                    f"case {name} is in two sites",
                    path=path,
                    found=f"{owners[name]} and {site}",
                    expected="each case in exactly one site",
                    fix=f"remove it from one of them in {key}",
                )
    return owners


def _few(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
