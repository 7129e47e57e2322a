"""The multi-site prostate MRI collection (T2) of Liu et al. made into our raw layout, with one label: the whole prostate.

Q. Liu, Q. Dou, L. Yu, P.-A. Heng, MS-Net, IEEE TMI 2020 (arXiv:2002.03366); Q. Liu, Q. Dou, P.-A. Heng, Shape-aware Meta-learning (SAML),
MICCAI 2020 (arXiv:2007.02035). Expected, one folder a site::

    RUNMC/Case00.nii.gz  RUNMC/Case00_segmentation.nii.gz  ...
    BMC/Case00.nii.gz    BMC/Case00_Segmentation.nii.gz  ...
    HCRUDB/  UCL/  BIDMC/  HK/

The authors' own file lists call three sites ``ISBI`` (RUNMC), ``ISBI_1.5`` (BMC) and ``I2CVB`` (HCRUDB): both names are read, in upper or
lower case. Case numbers start anew at every site, so that a case becomes ``SITE_CaseNN``.

**The labels.** RUNMC and BMC come from the NCI-ISBI 2013 challenge, which drew two zones: their masks hold 0, 1 and 2, where the others
hold 0 and 1. Both zones are prostate. The authors' loaders merge 2 into 1 (``mask[mask==2] = 1``); code that reads the files without doing
so trains on a zone at two sites and on the gland at four. Any other value is refused.
"""

import logging
import re
from collections import defaultdict
from pathlib import Path

from fedsam_pipeline.dataset.conversion import SourceCase, find_root, misfit, stem_of, visible, write_dataset
from fedsam_pipeline.dataset.convert_layouts import PROSTATE
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.raw_checks import some
from fedsam_pipeline.dataset.staging import new_dataset_folder

log = logging.getLogger(__name__)

SITES = ("BIDMC", "BMC", "HCRUDB", "HK", "RUNMC", "UCL")
_OTHER_NAMES = {"ISBI": "RUNMC", "ISBI_1.5": "BMC", "I2CVB": "HCRUDB"}
_ONE_LABEL = {0: 0, 1: 1}
_TWO_ZONES = {0: 0, 1: 1, 2: 1}
_WITH_ZONES = ("RUNMC", "BMC")
_FILE = re.compile(r"^case(\d+)(_segmentation)?$", re.IGNORECASE)


def convert_prostate(source: Path, root: Path, *, number: int, overwrite: bool = False, progress: bool = False) -> RawDataset:
    """Converts the collection; sites without a folder are named in the log and left out.

    Args:
        source: the folder of the site folders, or one that holds it.
        root: the raw folder; ``DatasetXXX_MultiSiteProstate`` is made in it.
        number: of the new dataset.
        overwrite: replace a dataset of the same number and name.
        progress: show a progress bar on a terminal.

    Raises:
        FedsamError: the folder is laid out differently (all faults are listed), a mask holds an unknown value, or the dataset exists.
    """
    folder = new_dataset_folder(Path(root), number, "MultiSiteProstate")
    source = find_root(Path(source), lambda path: any(child.is_dir() and _site_of(child) for child in visible(path)))
    folders: dict[str, list[Path]] = defaultdict(list)
    faults = []
    for child in visible(source):
        if child.is_dir() and (site := _site_of(child)):
            folders[site].append(child)
        elif child.is_dir():
            faults.append(f"{child.name} is no site")
    faults += [f"{' and '.join(path.name for path in paths)} are the same site" for paths in folders.values() if len(paths) > 1]
    cases = [case for site, paths in folders.items() for path in paths for case in _cases_of(path, site, faults)]
    if not cases:
        faults.append("no case")
    if faults:
        raise misfit(source, faults, PROSTATE, "unpack the collection again, and keep nothing else in the folder")
    missing = sorted(set(SITES) - folders.keys())
    if missing:
        log.info("left out, no folder: %s", ", ".join(missing))
    content = {
        "name": "MultiSiteProstate",
        "description": "Prostate in T2-weighted MRI of six sites; the two zones of RUNMC and BMC are merged",
        "reference": "Liu et al., MS-Net, IEEE TMI 2020, arXiv:2002.03366; Liu et al., SAML, MICCAI 2020, arXiv:2007.02035; from "
        "NCI-ISBI 2013 (doi:10.7937/K9/TCIA.2015.zF0vlOPv), I2CVB (Lemaitre et al. 2015) and PROMISE12 (Litjens et al. 2014)",
        "licence": "the collection names none of its own; the terms of NCI-ISBI 2013, I2CVB and PROMISE12 apply to their images",
        "channel_names": {"0": "T2"},
        "labels": {"background": 0, "prostate": 1},
        "file_ending": ".nii.gz",
        "converted_from": {"layout": "prostate", "merged": {site: {"1": 1, "2": 1} for site in sorted(_WITH_ZONES) if site in folders}},
    }
    return write_dataset(folder, source, cases, content, overwrite=overwrite, progress=progress)


def _site_of(folder: Path) -> str | None:
    name = folder.name.upper()
    site = _OTHER_NAMES.get(name, name)
    return site if site in SITES else None


def _cases_of(folder: Path, site: str, faults: list[str]) -> list[SourceCase]:
    """The cases of one site; appends what does not fit to ``faults``."""
    images: dict[str, list[Path]] = defaultdict(list)
    masks: dict[str, list[Path]] = defaultdict(list)
    strange = []
    for path in visible(folder):
        stem = stem_of(path)
        match = _FILE.match(stem or "")
        if match is not None:
            (masks if match.group(2) else images)[match.group(1)].append(path)
        elif stem is not None or path.is_dir():
            strange.append(path.name)
    twice = [f"Case{number}" for files in (images, masks) for number, paths in files.items() if len(paths) > 1]
    for words, names in (
        ("images without a mask", {f"Case{number}" for number in images.keys() - masks.keys()}),
        ("masks without an image", {f"Case{number}" for number in masks.keys() - images.keys()}),
        ("more than one file for", set(twice)),
        ("unknown names", set(strange)),
    ):
        if names:
            faults.append(f"{folder.name}: {words}, {some(names)}")
    values = _TWO_ZONES if site in _WITH_ZONES else _ONE_LABEL
    return [
        SourceCase(f"{site}_Case{number}", (images[number][0],), masks[number][0], site, values=values)
        for number in sorted(images.keys() & masks.keys())
    ]
