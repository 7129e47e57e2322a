"""``fedsam_report``: one HTML page about a trained fold, from the files that training wrote."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json, write_text
from fedsam_pipeline.inference.trained import TRAIN_FIX, TRAINED_MARKER, choose_run
from fedsam_pipeline.model.bundle_zip import DISTRIBUTION
from fedsam_pipeline.paths import choose_dataset, data_folders
from fedsam_pipeline.pipeline.report_cases import draw_cases
from fedsam_pipeline.report.case_scores import CaseDice, ScoreSet, site_cases
from fedsam_pipeline.report.run_files import RunFiles, checked
from fedsam_pipeline.report.run_page import Surroundings, run_page
from fedsam_pipeline.report.score_sections import CasePicture
from fedsam_pipeline.report.tradeoff import RunCost
from fedsam_pipeline.report.training_sections import run_cost
from fedsam_pipeline.specs.fingerprint import Fingerprint

PAGE = "report.html"
NOT_HERE = "The scores of single cases are not on this machine: they stay at their sites."
LEFT_OUT = "Single cases are left out of this page (--no_cases)."
SAME = ("plan_sha256", "cases_sha256")
"""keys of ``run.json`` in which runs agree whose Dice may be compared"""


def report(
    *,
    dataset: str | None = None,
    model: Path | None = None,
    output: Path | None = None,
    cases: int = 2,
    show_cases: bool = True,
    device: str = "auto",
) -> Path:
    """Writes the page of one fold and returns its path.

    Args:
        dataset: number or name; ``None`` is the only trained one.
        model: run folder with one fold, or fold folder, trained or in training; with it ``dataset`` is not needed.
        output: the page; ``None``: ``report.html`` in the fold folder.
        cases: pictures of so many worst cases, and of as many around the median.
        show_cases: ``False`` leaves out all that shows single cases: pictures, names, box plots.
        device: ``auto``, ``cpu`` or ``cuda``, for predicting the cases that are drawn.

    Raises:
        FedsamError: there is no such run, a file of it is missing or broken, or the page cannot be written.
    """
    folders = data_folders()
    if model is None:
        chosen = choose_dataset(folders.results, dataset, marker=TRAINED_MARKER, stage="trained", fix=TRAIN_FIX)
        model = choose_run(chosen)
        print(f"reporting on {chosen.name}: {model.relative_to(chosen)}")
        if notice := folders.notice():
            print(notice)
    files = RunFiles.load(fold_of(model))
    scores = own_scores(files)
    pictures: Sequence[CasePicture] = ()
    preprocessed = folders.preprocessed / files.plans.dataset_name
    why = NOT_HERE
    if not show_cases:
        scores, why, notes = [each.without_cases() for each in scores], LEFT_OUT, [LEFT_OUT]
    elif shown := scores[0].cases:
        pictures, notes = draw_cases(files, shown, cases, preprocessed, device)
    else:
        notes = ["No case is shown: no scored case is on this machine."]
    return write_page(files, scores, preprocessed, output=output, why_no_cases=why, pictures=pictures, picture_notes=notes)


def write_page(
    files: RunFiles,
    scores: Sequence[ScoreSet],
    preprocessed: Path,
    *,
    output: Path | None = None,
    why_no_cases: str = NOT_HERE,
    pictures: Sequence[CasePicture] = (),
    picture_notes: Sequence[str] = (),
) -> Path:
    """Adds what lies around the run, and writes the page.

    Args:
        files: of the run.
        scores: its evaluations, the most important first.
        preprocessed: folder of the preprocessed dataset, for the fingerprint; it need not be there.
        output: the page; ``None``: ``report.html`` in the fold folder.
        why_no_cases: said where single cases are not known.
        pictures: of single cases.
        picture_notes: how they were made, or why there are none.

    Raises:
        FedsamError: a record is broken, or the page cannot be written.
    """
    others, left_out = other_runs(files)
    fingerprint, why_no_fingerprint = _fingerprint(files, preprocessed / "fingerprint.json")
    around = Surroundings(
        scores, why_no_cases, pictures, picture_notes, others, left_out, fingerprint=fingerprint, why_no_fingerprint=why_no_fingerprint
    )
    path = files.folder / PAGE if output is None else output
    write_text(path, run_page(files, around, made_with=version(DISTRIBUTION)))
    return path


def fold_of(folder: Path) -> Path:
    """The fold folder itself, or the only one of a run folder.

    Raises:
        FedsamError: there are several; a page is about one.
    """
    folds = sorted(path.parent for path in folder.glob("fold_*/run.json"))
    if (folder / "run.json").is_file() or not folds:
        return folder
    if len(folds) > 1:
        raise FedsamError(
            "a report is about one fold",
            path=folder,
            found=", ".join(fold.name for fold in folds),
            expected="a fold folder",
            fix=f"add -m {folds[0]}, for example",
        )
    return folds[0]


def own_scores(files: RunFiles) -> list[ScoreSet]:
    """The scores at the end of the training: of the shared model, and where sites keep tensors of each site's own model.

    Raises:
        FedsamError: the scores of single cases are broken.
    """
    title = "Dice on validation cases"
    if files.summary is None:
        return [ScoreSet(title, {"rule": "", "dice": None, "sites": {}})]
    found = [ScoreSet(title, files.summary, _cases(files, files.summary, files.shared_scores))]
    if personal := files.summary.get("personal"):
        summary = {**personal, "rule": files.summary["rule"], "grid": files.summary["grid"]}
        found.append(ScoreSet(f"{title}, each site's own model", summary, _cases(files, personal, files.site_scores)))
    return found


def other_runs(files: RunFiles) -> tuple[list[RunCost], list[str]]:
    """Finished runs of the same dataset whose sites exchange updates, with the same plan and the same cases, and those that are broken."""
    found, broken = [], []
    for path in sorted(files.folder.resolve().parents[2].glob(f"*/*/{files.folder.resolve().name}/run.json")):
        if path.parent == files.folder.resolve():
            continue
        try:
            run = read_json(path)
            if not isinstance(run, dict) or any(run.get(key) != files.run.get(key) for key in SAME):
                continue
            other = RunFiles.load(path.parent)
            cost = run_cost(other) if other.exchanges else None
        except (FedsamError, KeyError, TypeError, ValueError) as error:  # another run's fault is no reason to have no page of this one
            reason = error.what if isinstance(error, FedsamError) else f"{type(error).__name__}: {error}"
            broken.append(f"{path.parents[2].name}/{path.parents[1].name}: {reason}")
            continue
        if cost is not None:
            found.append(cost)
    return found, broken


def _cases(files: RunFiles, summary: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> tuple[CaseDice, ...]:
    """The single cases of a summary, where their files are here."""
    together = summary.get("all_sites")
    return () if together is None else checked(files.folder / "sites", lambda: site_cases(documents, list(together["classes"])))


def _fingerprint(files: RunFiles, path: Path) -> tuple[Fingerprint | None, str]:
    """The fingerprint that the plan was made of, or why it is not known."""
    if not path.is_file():
        return None, "The fingerprint that the plan was made of is not on this machine, so its privacy floor is not known here."
    fingerprint = Fingerprint.load(path, fix="fedsam_plan_and_preprocess writes it anew")
    if fingerprint.sha256() != files.plans.fingerprint_sha256:
        return None, "The fingerprint on this machine is not the one that the plan was made of, so its privacy floor is not told."
    return fingerprint, ""
