"""One raw case into the store, unless it is there already."""

from pathlib import Path

from fedsam_pipeline.dataset.dicom import stored_files
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.site_mapping import read_mapped_labels
from fedsam_pipeline.dataset.volume import read_image
from fedsam_pipeline.preprocessing.preprocess import annotated_locations, foreground_locations, preprocess_image, preprocess_labels
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.canonical import sha256_of
from fedsam_pipeline.specs.plans import Plans


def input_signature(dataset: RawDataset, case: str) -> str:
    """SHA-256 of what a stored case was made of: name, size and modification time of its files in the order of channels, its site, the
    ignore label, and how ``site.toml`` maps label values."""
    paths = [*dataset.image_paths(case), dataset.label_path(case)]
    files = [(file, file.relative_to(path.parent).as_posix()) for path in paths for file in stored_files(path)]
    facts = [[name, file.stat().st_size, file.stat().st_mtime_ns] for file, name in files]
    ignored = {} if dataset.ignore_label is None else {"ignore": dataset.ignore_label}
    mapped = {"labels": dataset.mapping.label_facts()} if dataset.mapping.values else {}
    return sha256_of({"site": dataset.site_of(case), "files": facts} | ignored | mapped)


def store_case(dataset: RawDataset, case: str, plans: Plans, folder: Path) -> bool:
    """Preprocesses one labelled case into the store in ``folder``.

    Args:
        dataset: the raw dataset; the case's files have been verified.
        case: its name.
        plans: the plan.
        folder: the store's folder.

    Returns:
        Whether there was work to do: ``False`` where the store holds the case already, made of the same files by the same plan.

    Raises:
        FedsamError: a file cannot be read, or the store cannot be written to.
    """
    store = CaseStore(folder)
    signatures = {"preprocessing_sha256": plans.preprocessing_sha256(), "inputs_sha256": input_signature(dataset, case)}
    if store.is_done(case, **signatures):
        return False
    paths = dataset.image_paths(case)
    image, properties = preprocess_image(
        read_image(paths), plans, case=case, site=dataset.site_of(case), input_files=[path.name for path in paths]
    )
    labels = preprocess_labels(
        read_mapped_labels(dataset.label_path(case), dataset.mapping), properties, plans, ignore=dataset.ignore_label
    )
    foreground, annotated = foreground_locations(labels, case), annotated_locations(labels, case)
    store.write(case, image, labels, properties, foreground, annotated, **signatures)
    return True
