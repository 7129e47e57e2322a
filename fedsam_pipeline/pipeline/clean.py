"""``--clean``: the stores of a dataset that a plan is about to fill again, or that no plan needs any more."""

import secrets
import shutil
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.preprocessing.store import store_folder
from fedsam_pipeline.specs.plans import Plans, is_plans_name


def clean_stores(folder: Path, plans: Plans) -> list[Path]:
    """Deletes the store of ``plans``, whatever made the cases in it, and all stores that belong to none of the plans in the folder.

    Stores of the other plans (``NAME.json``) stay. A plan that was set aside (``NAME.before.json``) keeps no store alive. Each store is
    renamed before it is deleted, so that an interruption leaves no store with some of its cases.

    Args:
        folder: the preprocessed dataset.
        plans: the plan that will be preprocessed, already written to the folder.

    Returns:
        The stores that were deleted, sorted.

    Raises:
        FedsamError: a plan in the folder cannot be read, so that nobody knows what its store is (nothing is deleted then), or a store
            cannot be deleted.
    """
    fix = "mend the plan, or delete it and its store with it"
    others = [Plans.load(path, fix=fix) for path in sorted(folder.glob("*.json")) if is_plans_name(path.stem)]
    needed = {store_folder(folder, other) for other in others} - {store_folder(folder, plans)}
    unneeded = [store for store in sorted(folder.glob("store_*")) if store not in needed]
    for store in unneeded:
        aside = store.with_name(f".tmp-{secrets.token_hex(4)}-{store.name}")
        try:
            store.rename(aside)
            shutil.rmtree(aside)
        except OSError as error:
            raise FedsamError(
                "a store cannot be deleted", path=store, found=str(error), fix="delete it by hand, then leave --clean out"
            ) from error
    return unneeded
