"""KiTS19 with the hospitals of Fed-KiTS19 made into our raw layout: kidney and kidney tumor in CT.

N. Heller et al., The KiTS19 Challenge Data, 2019 (arXiv:1904.00445); J. Ogier du Terrail et al., FLamby, NeurIPS 2022 (arXiv:2210.04620).
Expected, a clone of github.com/neheller/kits19 after ``python3 -m starter_code.get_imaging``, or its folder ``data``::

    data/case_00000/imaging.nii.gz  data/case_00000/segmentation.nii.gz  ...
    data/case_00210/imaging.nii.gz  ...     (case_00210 to case_00299 have no mask)

**The sites** come from a table, since KiTS19 itself does not name them. FLamby (github.com/owkin/FLamby) has two in
``flamby/datasets/fed_kits19``; either is given with ``--sites``:

- ``anony_sites.csv`` (``dataset_creation_scripts/`` or ``metadata/``), columns ``case, site_id``: all 300 cases, 89 hospitals;
- ``metadata/thresholded_sites.csv``, columns ``case_ids, site_ids, train_test_split, train_test_split_silo``: the 96 cases of the six
  hospitals with at least 10 labelled ones, renumbered from 0. Its ``test`` cases go to ``imagesTs`` and ``labelsTs``.

Cases that the table does not name are left out, and so are hospitals with fewer than ``min_cases`` labelled cases, which is FLamby's rule.

**Geometry.** The files store slices along their first axis, and their affine says so (KiTS19's README and changelog): the bytes are copied,
and our reader goes by the affine. **Labels**: 0 background, 1 kidney, 2 tumor.
"""

import logging
import re
from collections import Counter
from pathlib import Path

from fedsam_pipeline.dataset.conversion import SourceCase, find_root, misfit, read_table, site_names, visible, write_dataset
from fedsam_pipeline.dataset.convert_layouts import KITS19, KITS19_MIN_CASES, KITS19_TABLE
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.raw_checks import some
from fedsam_pipeline.dataset.staging import new_dataset_folder
from fedsam_pipeline.errors import FedsamError

log = logging.getLogger(__name__)

LABELLED = 210
"""case_00000 to case_00209 have masks (Heller et al. 2019)"""
_CASE = re.compile(r"^case_(\d{5})$")
_VALUES = {0: 0, 1: 1, 2: 2}


def convert_kits19(
    source: Path,
    root: Path,
    *,
    number: int,
    sites_file: Path,
    min_cases: int = KITS19_MIN_CASES,
    overwrite: bool = False,
    progress: bool = False,
) -> RawDataset:
    """Converts the cases that the table names; what is left out is counted in the log.

    Args:
        source: the clone, or its folder ``data``.
        root: the raw folder; ``DatasetXXX_FedKiTS19`` is made in it.
        number: of the new dataset.
        sites_file: one of FLamby's tables.
        min_cases: hospitals with fewer labelled cases are left out.
        overwrite: replace a dataset of the same number and name.
        progress: show a progress bar on a terminal.

    Raises:
        FedsamError: the folder is laid out differently (all faults are listed), the table does not fit, a mask holds an unknown value, or
            the dataset exists.
    """
    folder = new_dataset_folder(Path(root), number, "FedKiTS19")
    source = find_root(Path(source), lambda path: any(_CASE.match(child.name) for child in visible(path)))
    site_of, held_out = _read_sites(Path(sites_file))
    found = {path.name: path for path in visible(source) if path.is_dir() and _CASE.match(path.name)}
    _check_layout(source, found, site_of)
    names = site_names(site_of.values())
    cases = [
        SourceCase(
            case,
            (path / "imaging.nii.gz",),
            path / "segmentation.nii.gz" if (path / "segmentation.nii.gz").is_file() else None,
            names[site_of[case]],
            held_out=case in held_out,
            values=_VALUES,
        )
        for case, path in found.items()
        if case in site_of
    ]
    labelled = Counter(case.site for case in cases if case.label is not None)
    kept = [case for case in cases if labelled[case.site] >= min_cases]
    if all(case.is_test for case in kept):
        raise FedsamError(
            "no hospital has enough labelled cases",
            path=sites_file,
            found=f"at most {max(labelled.values(), default=0)}",
            expected=f"{min_cases} or more",
            fix="lower --min_cases, or check that the table belongs to this download",
        )
    unnamed, small = sorted(found.keys() - site_of.keys()), sorted({case.name for case in cases} - {case.name for case in kept})
    for words, names_left in (("not in the table", unnamed), (f"at hospitals with fewer than {min_cases} labelled cases", small)):
        if names_left:
            log.info("left out, %s: %s", words, some(names_left))
    content = {
        "name": "FedKiTS19",
        "description": "Kidney and kidney tumor in arterial-phase CT, by hospital",
        "reference": "Heller et al., The KiTS19 Challenge Data, arXiv:1904.00445; Heller et al., Medical Image Analysis 67, 2021; "
        "sites: Ogier du Terrail et al., FLamby, NeurIPS 2022, arXiv:2210.04620",
        "licence": "CC BY-NC-SA 4.0",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": 1, "tumor": 2},
        "file_ending": ".nii.gz",
        "converted_from": {"layout": "kits19", "sites_table": Path(sites_file).name, "left_out": unnamed + small},
    }
    return write_dataset(folder, source, kept, content, overwrite=overwrite, progress=progress)


def _read_sites(path: Path) -> tuple[dict[str, str], set[str]]:
    """Case to hospital as the table numbers it, and the cases that it holds out for testing."""
    rows = read_table(path, [("case", "site_id"), ("case_ids", "site_ids", "train_test_split")], KITS19_TABLE)
    column, site_column = ("case", "site_id") if "case" in rows[0] and "site_id" in rows[0] else ("case_ids", "site_ids")
    faults = []
    if wrong := [row[column] for row in rows if not _CASE.match(row[column])]:
        faults.append(f"no names of cases: {some(wrong)}")
    if splits := {row["train_test_split"] for row in rows if "train_test_split" in row} - {"train", "test"}:
        faults.append(f"unknown splits: {some(splits)}")
    if faults:
        raise FedsamError(
            "the table of sites is not usable", path=path, found="; ".join(faults), expected=KITS19_TABLE, fix="take FLamby's file"
        )
    held_out = {row[column] for row in rows if row.get("train_test_split") == "test"}
    return {row[column]: row[site_column] for row in rows}, held_out


def _check_layout(source: Path, found: dict[str, Path], site_of: dict[str, str]) -> None:
    """Every case must have its image; of the first 210, those in the table must be there, with masks."""
    wanted = {case for case in site_of if int(case.removeprefix("case_")) < LABELLED}
    faults = [] if found else ["no folder case_NNNNN"]
    for words, cases in (
        ("cases of the table without a folder", wanted - found.keys()),
        ("no imaging.nii.gz in", {case for case, path in found.items() if case in site_of and not (path / "imaging.nii.gz").is_file()}),
        ("no segmentation.nii.gz in", {case for case in wanted & found.keys() if not (found[case] / "segmentation.nii.gz").is_file()}),
    ):
        if cases:
            faults.append(f"{words}, {some(cases)}")
    if faults:
        raise misfit(source, faults, KITS19, "clone github.com/neheller/kits19 and run python3 -m starter_code.get_imaging in it")
