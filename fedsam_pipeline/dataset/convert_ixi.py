"""IXI Tiny with the three hospitals of Fed-IXI made into our raw layout: the brain in T1-weighted MRI.

IXI: brain-development.org/ixi-dataset. IXI Tiny: F. Pérez-García et al., TorchIO, 2021 (arXiv:2003.04696); its masks come from ROBEX, not
from people. Fed-IXI: J. Ogier du Terrail et al., FLamby, NeurIPS 2022 (arXiv:2210.04620). Expected, TorchIO's archive::

    image/IXI002-Guys-0828_image.nii.gz  label/IXI002-Guys-0828_label.nii.gz  ...

or FLamby's, ``IXI_sample``::

    IXI002-Guys-0828/T1/IXI002-Guys-0828_image.nii.gz  IXI002-Guys-0828/label/IXI002-Guys-0828_label.nii.gz  ...

Only the beginning ``IXI002-Guys-0828`` of a file's name counts, so that ``IXI002-Guys-0828-T1.nii.gz`` is read too. It gives the patient
(``IXI002``) and the site: ``Guys`` (Guy's Hospital), ``HH`` (Hammersmith Hospital), ``IOP`` (Institute of Psychiatry). **Labels**: 0
background, 1 brain. FLamby's own split is its ``metadata/metadata_tiny.csv``, columns ``Patient ID, Manufacturer, Split``: with it, the
``test`` patients go to ``imagesTs`` and ``labelsTs``.
"""

import re
from collections import defaultdict
from pathlib import Path

from fedsam_pipeline.dataset.conversion import SourceCase, find_root, misfit, read_table, stem_of, visible, write_dataset
from fedsam_pipeline.dataset.convert_layouts import IXI, IXI_TABLE
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.raw_checks import some
from fedsam_pipeline.dataset.staging import new_dataset_folder
from fedsam_pipeline.errors import FedsamError

SITES = ("Guys", "HH", "IOP")
_SUBJECT = re.compile(r"^(IXI(\d{3}))-([A-Za-z]+)-(\d+)(?=$|[-_.])")
_VALUES = {0: 0, 1: 1}


def convert_ixi(
    source: Path, root: Path, *, number: int, split_file: Path | None = None, overwrite: bool = False, progress: bool = False
) -> RawDataset:
    """Converts all subjects.

    Args:
        source: the folder of ``image`` and ``label``, or of the subjects, or one that holds it.
        root: the raw folder; ``DatasetXXX_FedIXI`` is made in it.
        number: of the new dataset.
        split_file: FLamby's ``metadata_tiny.csv``; without it all cases are training cases.
        overwrite: replace a dataset of the same number and name.
        progress: show a progress bar on a terminal.

    Raises:
        FedsamError: the folder is laid out differently (all faults are listed), the table does not fit, a mask holds an unknown value, or
            the dataset exists.
    """
    folder = new_dataset_folder(Path(root), number, "FedIXI")
    source = find_root(Path(source), lambda path: (path / "image").is_dir() or any(_is_subject(child) for child in visible(path)))
    faults: list[str] = []
    images, masks = _by_subject(_files(source, "image", "T1"), faults), _by_subject(_files(source, "label", "label"), faults)
    for words, names in (
        ("images without a mask", images.keys() - masks.keys()),
        ("masks without an image", masks.keys() - images.keys()),
        (f"hospitals other than {', '.join(SITES)}", {name for name in images if _parts(name)[1] not in SITES}),
    ):
        if names:
            faults.append(f"{words}, {some(names)}")
    if not images:
        faults.append("no image")
    if faults:
        raise misfit(source, faults, IXI, "unpack the archive of IXI Tiny again; IXI's own archives have no masks")
    patients = {name: _parts(name)[0] for name in images}
    held_out = set() if split_file is None else _held_out(Path(split_file), set(patients.values()))
    cases = [
        SourceCase(name, (images[name],), masks[name], _parts(name)[1], patient, held_out=patient in held_out, values=_VALUES)
        for name, patient in patients.items()
    ]
    content = {
        "name": "FedIXI",
        "description": "Brain in T1-weighted MRI of three London hospitals; masks by ROBEX",
        "reference": "https://brain-development.org/ixi-dataset; Perez-Garcia et al., TorchIO, 2021, arXiv:2003.04696; "
        "Ogier du Terrail et al., FLamby, NeurIPS 2022, arXiv:2210.04620",
        "licence": "CC BY-SA 3.0",
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "brain": 1},
        "file_ending": ".nii.gz",
        "converted_from": {"layout": "ixi", "split_table": None if split_file is None else Path(split_file).name},
    }
    return write_dataset(folder, source, cases, content, overwrite=overwrite, progress=progress)


def _is_subject(path: Path) -> bool:
    return path.is_dir() and _SUBJECT.match(path.name) is not None


def _parts(name: str) -> tuple[str, str]:
    """Patient and hospital of ``IXI002-Guys-0828``."""
    patient, hospital, _ = name.split("-")
    return patient, hospital


def _files(source: Path, folder: str, part: str) -> list[Path]:
    """The image files of ``source/folder``, or of ``part`` in every subject's folder."""
    folders = [source / folder] if (source / "image").is_dir() else [child / part for child in visible(source) if _is_subject(child)]
    return [path for place in folders if place.is_dir() for path in visible(place) if stem_of(path) is not None]


def _by_subject(paths: list[Path], faults: list[str]) -> dict[str, Path]:
    """Files by subject; appends names that cannot be read, and subjects with several files, to ``faults``."""
    found: dict[str, list[Path]] = defaultdict(list)
    strange = []
    for path in paths:
        match = _SUBJECT.match(path.name)
        if match is None:
            strange.append(f"{path.parent.name}/{path.name}")
        else:
            found[match.group(0)].append(path)
    if strange:
        faults.append(f"unknown names, {some(strange)}")
    twice = [f"{files[0].parent.name}/{name}" for name, files in found.items() if len(files) > 1]
    if twice:
        faults.append(f"more than one file for, {some(twice)}")
    return {name: files[0] for name, files in found.items()}


def _held_out(path: Path, patients: set[str]) -> set[str]:
    """The patients that the table calls ``test``; it must name all."""
    rows = read_table(path, [("Patient ID", "Split")], IXI_TABLE)
    split = {f"IXI{int(row['Patient ID']):03d}" if row["Patient ID"].isdecimal() else row["Patient ID"]: row["Split"] for row in rows}
    faults = []
    if missing := patients - split.keys():
        faults.append(f"no row for {some(missing)}")
    if unknown := set(split.values()) - {"train", "test"}:
        faults.append(f"unknown splits: {some(unknown)}")
    if faults:
        raise FedsamError(
            "the table of the split does not fit", path=path, found="; ".join(faults), expected=IXI_TABLE, fix="take FLamby's file"
        )
    return {patient for patient in patients if split[patient] == "test"}
