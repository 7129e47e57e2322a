"""One raw case into the store, unless it is there already."""

from pathlib import Path

from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.volume import read_image, read_labels
from fedsam_pipeline.preprocessing.preprocess import foreground_locations, preprocess_image, preprocess_labels
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.canonical import sha256_of
from fedsam_pipeline.specs.plans import Plans


def input_signature(dataset: RawDataset, case: str) -> str:
    """SHA-256 of the name, size and modification time of the case's files, and of its site: what a stored case was made of."""
    files = [*dataset.image_paths(case), dataset.label_path(case)]
    facts = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return sha256_of({"site": dataset.site_of(case), "files": facts})


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
    labels = preprocess_labels(read_labels(dataset.label_path(case)), properties, plans)
    store.write(case, image, labels, properties, foreground_locations(labels, case), **signatures)
    return True
