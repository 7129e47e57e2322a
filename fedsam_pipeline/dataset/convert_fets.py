"""The training data of the FeTS 2022 challenge made into our raw layout: glioma in four MRI sequences, by institution.

S. Pati et al., The Federated Tumor Segmentation (FeTS) Challenge, 2021 (arXiv:2105.05874); data: U. Baid et al., RSNA-ASNR-MICCAI BraTS
2021 (arXiv:2107.02314). Expected, ``MICCAI_FeTS2022_TrainingData`` of Synapse syn28546456::

    partitioning_1.csv  partitioning_2.csv
    FeTS2022_00000/FeTS2022_00000_{t1,t1ce,t2,flair,seg}.nii.gz  ...

The sites come from ``partitioning_1.csv`` (the 23 institutions), or from another table with the columns ``Partition_ID, Subject_ID``,
such as ``partitioning_2.csv`` (the larger institutions cut again by tumor size: 33). Every row must have its folder and every folder with
a mask its row; folders without a mask and without a row go to ``imagesTs``.

**The labels.** BraTS numbers its parts 1 (necrotic core), 2 (edema) and 4 (enhancing tumor). Ours are consecutive: 4 becomes 3. A mask
that holds a 3 is refused: it was numbered by another rule. BraTS scores the unions whole tumor {1, 2, 3}, tumor core {1, 3} and enhancing
tumor {3}; docs/convert.md shows the ``labels`` that do so.
"""

from pathlib import Path

from fedsam_pipeline.dataset.conversion import ENDINGS, SourceCase, find_root, misfit, read_table, site_names, visible, write_dataset
from fedsam_pipeline.dataset.convert_layouts import FETS
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.raw_checks import some
from fedsam_pipeline.dataset.staging import new_dataset_folder

TABLE = "partitioning_1.csv"
CHANNELS = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
"""ending of the file's name to the channel's name, in the order of our channels"""
UNPACK = "unpack MICCAI_FeTS2022_TrainingData again, and keep nothing else in its folder"
_VALUES = {0: 0, 1: 1, 2: 2, 4: 3}


def convert_fets(
    source: Path, root: Path, *, number: int, sites_file: Path | None = None, overwrite: bool = False, progress: bool = False
) -> RawDataset:
    """Converts all subjects.

    Args:
        source: the folder of the subjects, or one that holds it.
        root: the raw folder; ``DatasetXXX_FeTS2022`` is made in it.
        number: of the new dataset.
        sites_file: the table; ``None`` takes ``partitioning_1.csv`` beside the subjects.
        overwrite: replace a dataset of the same number and name.
        progress: show a progress bar on a terminal.

    Raises:
        FedsamError: the folder is laid out differently (all faults are listed), a mask holds an unknown value, or the dataset exists.
    """
    folder = new_dataset_folder(Path(root), number, "FeTS2022")
    source = find_root(Path(source), lambda path: (path / TABLE).is_file() or any(_is_subject(child) for child in visible(path)))
    table = Path(sites_file) if sites_file is not None else source / TABLE
    absent = [] if sites_file is not None or table.is_file() else [f"no {TABLE}"]
    absent += [] if any(_is_subject(path) for path in visible(source)) else ["no folder of a subject"]
    if absent:
        raise misfit(source, absent, FETS, UNPACK)
    rows = read_table(table, [("Subject_ID", "Partition_ID")], "columns Partition_ID, Subject_ID")
    site_of = {row["Subject_ID"]: row["Partition_ID"] for row in rows}
    subjects = {path.name: path for path in visible(source) if path.is_dir()}
    masks = {name: mask for name, path in subjects.items() if (mask := _file(path, "seg")) is not None}
    images = {name: tuple(_file(path, ending) for ending in CHANNELS) for name, path in subjects.items()}
    faults = []
    for words, names in (
        (f"rows of {table.name} without a folder", site_of.keys() - subjects.keys()),
        (f"folders with a mask that {table.name} does not name", masks.keys() - site_of.keys()),
        (f"folders without exactly one mask that {table.name} names", (site_of.keys() & subjects.keys()) - masks.keys()),
        *(
            (f"not exactly one _{ending} file in", {name for name, files in images.items() if files[channel] is None})
            for channel, ending in enumerate(CHANNELS)
        ),
    ):
        if names:
            faults.append(f"{words}, {some(names)}")
    if faults:
        raise misfit(source, faults, FETS, UNPACK)
    site_name = site_names(site_of.values())
    cases = [
        SourceCase(
            name,
            tuple(path for path in images[name] if path is not None),
            masks.get(name),
            site_name[site_of[name]] if name in site_of else None,
            values=_VALUES,
        )
        for name in subjects
    ]
    content = {
        "name": "FeTS2022",
        "description": "Glioma in four MRI sequences, by institution; label 4 of BraTS is 3 here",
        "reference": "Pati et al., The Federated Tumor Segmentation (FeTS) Challenge, arXiv:2105.05874; Baid et al., arXiv:2107.02314",
        "licence": "the terms accepted at Synapse syn28546456",
        "channel_names": {str(channel): name for channel, name in enumerate(CHANNELS.values())},
        "labels": {"background": 0, "necrotic_core": 1, "edema": 2, "enhancing_tumor": 3},
        "file_ending": ".nii.gz",
        "converted_from": {"layout": "fets", "sites_table": table.name, "label_values": {str(old): new for old, new in _VALUES.items()}},
    }
    return write_dataset(folder, source, cases, content, overwrite=overwrite, progress=progress)


def _is_subject(path: Path) -> bool:
    return path.is_dir() and _file(path, "flair") is not None


def _file(subject: Path, ending: str) -> Path | None:
    """``SUBJECT_ending.nii.gz`` of a subject, or the same uncompressed; ``None`` without, and with both."""
    found = [path for suffix in ENDINGS if (path := subject / f"{subject.name}_{ending}{suffix}").is_file()]
    return found[0] if len(found) == 1 else None
