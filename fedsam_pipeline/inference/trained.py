"""Finding trained models on disk, so that ``fedsam_predict`` needs no flags where there is only one."""

from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.trained_files import BUNDLE_FILE, PLANS_FILE
from fedsam_pipeline.specs.plans import Plans

TRAINED_MARKER = f"*/*/fold_*/{BUNDLE_FILE}"
"""what a dataset folder under results contains once a fold is trained; the file is written last"""
FEDERATED_PREFIX = "federated__"
TRAIN_FIX = "train one with fedsam_train_federated, or name a trained folder with -m FOLDER"


def choose_run(dataset_folder: Path) -> Path:
    """The run of a dataset to predict with: the only trained one, or the only federated one among baselines.

    Args:
        dataset_folder: ``results/DatasetXXX_Name``.

    Returns:
        The ``PROTOCOL__STRATEGY__seedN`` folder.

    Raises:
        FedsamError: nothing is trained, or several runs are and none of them is the only federated one.
    """
    runs = sorted({path.parent.parent for path in dataset_folder.glob(TRAINED_MARKER)})
    if not runs:
        raise FedsamError("no trained model", path=dataset_folder, expected=f"a fold folder with {BUNDLE_FILE}", fix=TRAIN_FIX)
    if len(runs) == 1:
        return runs[0]
    federated = [run for run in runs if run.name.startswith(FEDERATED_PREFIX)]
    if len(federated) == 1:
        return federated[0]
    raise FedsamError(
        f"{len(runs)} trained models and no -m says which",
        path=dataset_folder,
        found=", ".join(str(run.relative_to(dataset_folder)) for run in runs),
        expected="-m with one of these folders",
        fix=f"add -m {runs[0]}, for example",
    )


def find_folds(folder: Path, folds: Sequence[str] | None = None) -> list[Path]:
    """The fold folders to predict with.

    Args:
        folder: a fold folder, or a run folder that contains ``fold_*``.
        folds: ``["0", "1"]`` or ``["all"]``; ``None`` is every trained numbered fold, or ``fold_all`` where there is no numbered one.

    Raises:
        FedsamError: the folder is missing or holds no trained fold, or a named fold is not trained.
    """
    if not folder.is_dir():
        raise FedsamError("the model folder is missing", path=folder, expected="a trained run or fold folder", fix="check -m")
    if (folder / BUNDLE_FILE).is_file():
        trained = {folder.name.removeprefix("fold_"): folder}
    else:
        trained = {path.parent.name.removeprefix("fold_"): path.parent for path in sorted(folder.glob(f"fold_*/{BUNDLE_FILE}"))}
    if not trained:
        raise FedsamError(
            "a model folder holds no trained fold",
            path=folder,
            found=", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing",
            expected=f"{BUNDLE_FILE}, or fold_*/{BUNDLE_FILE}",
            fix="wait until training is done, or check -m",
        )
    if folds is None:
        numbered = sorted((name for name in trained if name.isdigit()), key=int)
        return [trained[name] for name in numbered or sorted(trained)]
    missing = [name for name in folds if name not in trained]
    if missing:
        raise FedsamError(
            f"fold {', '.join(missing)} is not trained",
            path=folder,
            found=f"trained: {', '.join(sorted(trained))}",
            fix=f"use -f {' '.join(sorted(trained))}, or train the others",
        )
    return [trained[name] for name in dict.fromkeys(folds)]


def common_plans(fold_folders: Sequence[Path]) -> Plans:
    """The plan that all folds were trained with.

    Raises:
        FedsamError: a plan is missing or broken, or the folds disagree.
    """
    plans = [Plans.load(folder / PLANS_FILE, fix="copy the whole model folder again") for folder in fold_folders]
    for folder, other in zip(fold_folders, plans, strict=True):
        if other.sha256() != plans[0].sha256():
            raise FedsamError(
                "the folds were trained with different plans",
                path=folder / PLANS_FILE,
                found=other.sha256(),
                expected=f"{plans[0].sha256()}, as in {fold_folders[0].name}",
                fix="predict with the folds of one plan: -f",
            )
    return plans[0]
