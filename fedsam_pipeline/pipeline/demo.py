"""fedsam_demo: the whole way on a made-up cohort, federated training beside training alone, scored on images no training saw."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.dataset.volume import read_image, read_labels
from fedsam_pipeline.errors import EXIT_DONE
from fedsam_pipeline.evaluation.summary import SiteDice, combine_sites
from fedsam_pipeline.model.registry import DEFAULT_BASE_MODEL
from fedsam_pipeline.pipeline.evaluate import evaluate
from fedsam_pipeline.pipeline.plan_and_preprocess import PlanRequest, plan_and_preprocess
from fedsam_pipeline.pipeline.predict import predict
from fedsam_pipeline.pipeline.report import PAGE, own_scores, write_page
from fedsam_pipeline.pipeline.train import train_all
from fedsam_pipeline.pipeline.train_request import TrainRequest, run_setups
from fedsam_pipeline.report.case_scores import CaseDice, choose_cases, evaluated
from fedsam_pipeline.report.overlay import HOW_TO_READ, overlay_png
from fedsam_pipeline.report.run_files import RunFiles
from fedsam_pipeline.report.score_sections import CasePicture
from fedsam_pipeline.specs.comparison import Protocol

DATASET = "Dataset001_Demo"


def run_demo(
    folder: Path,
    *,
    rounds: int,
    local_steps: int,
    base_model: str = DEFAULT_BASE_MODEL,
    size: str = "demo",
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Makes the cohort, plans, trains (federated, and each site alone with the same steps), predicts, scores, reports.

    Args:
        folder: everything is written below it; a demo that was interrupted continues.
        rounds, local_steps: of both trainings.
        base_model: a name of the registry.
        size: of the cohort, ``demo`` or ``tiny``.
        device: ``auto``, ``cpu`` or ``cuda``.
        overwrite: start over where a demo with other settings is there.

    Returns:
        The report, an HTML page.
    """
    started = time.perf_counter()
    raw = folder / "fedsam_data" / "raw" / DATASET
    preprocessed, results = folder / "fedsam_data" / "preprocessed", folder / "fedsam_data" / "results"
    _say("1/5 a made-up cohort of several sites")
    dataset = make_demo_dataset(raw, size="tiny" if size == "tiny" else "demo", overwrite=overwrite)
    _say("2/5 plan and preprocess")
    _all_cases(plan_and_preprocess(raw, preprocessed, PlanRequest(base_model)))
    summaries = {}
    run_folders = {}
    protocols: tuple[tuple[Protocol, str], ...] = (
        ("federated", "3/5 federated training"),
        ("local", "4/5 each site alone, with the same steps"),
    )
    for protocol, words in protocols:
        _say(words)
        request = TrainRequest(
            protocol=protocol,
            rounds=rounds,
            local_steps=local_steps,
            val_every=0,
            device=device,
            resume=not overwrite,
            overwrite=overwrite,
        )
        setups = run_setups(preprocessed / DATASET, results, request)
        train_all(setups, request)
        for setup in setups:
            name = "federated" if protocol == "federated" else setup.sites[0].site
            run_folders[name] = setup.folder
    _say("5/5 predict the test images and score them")
    for name, run_folder in run_folders.items():
        masks = folder / f"masks_{name}"
        # all without postprocessing: a site alone may choose it from any number of its cases, sites together only above the privacy floor
        _all_cases(predict(raw / "imagesTs", masks, model=run_folder, device=device, postprocessing=False))
        summaries[name], _ = evaluate(raw, masks)
    print()
    print(comparison_table(summaries, sorted(dataset.sites)))
    report = demo_report(raw, folder / "masks_federated", run_folders["federated"], summaries["federated"], preprocessed, folder)
    print(f"\nreport: {report}   ({(time.perf_counter() - started) / 60:.1f} minutes on {usable_cores()} cores)")
    return report


def comparison_table(summaries: Mapping[str, Mapping[str, Any]], sites: Sequence[str]) -> str:
    """Dice on the test images of every site: the federated model against the model that the site trained alone.

    Args:
        summaries: ``federated`` and every site's name, to the summary of that model's masks.
        sites: rows, in order.
    """
    names = list(summaries["federated"]["labels"])
    together = {site: SiteDice.from_dict(summaries["federated"]["sites"][site], names) for site in sites}
    alone = {site: SiteDice.from_dict(summaries[site]["sites"][site], names) for site in sites}
    rows = [(site, together[site].dice, alone[site].dice) for site in sites]
    rows.append(("mean", combine_sites(together).dice, combine_sites(alone).dice))
    lines = ["test images       federated  site alone  difference"]
    lines += [f"{name:<16}  {shared:9.4f}  {own:10.4f}  {shared - own:+10.4f}" for name, shared, own in rows]
    return "\n".join([*lines, str(summaries["federated"]["rule"])])


def demo_report(raw: Path, masks: Path, run_folder: Path, summary: Mapping[str, Any], preprocessed: Path, output: Path) -> Path:
    """The page of ``fedsam_report`` with the test images first.

    Args:
        raw: the raw dataset.
        masks: the predicted masks of its test images.
        run_folder: the federated fold.
        summary: scores of the masks.
        preprocessed: root of the preprocessed datasets.
        output: folder of ``report.html``.

    Returns:
        The page.
    """
    files = RunFiles.load(run_folder)
    test = evaluated("Dice on test images", summary)
    return write_page(
        files,
        [test, *own_scores(files)],
        preprocessed / files.plans.dataset_name,
        output=output / PAGE,
        pictures=_pictures(raw, masks, test.cases, files.plans.foreground_names),
        picture_notes=[f"Test images, on their own grid. {HOW_TO_READ}"],
    )


def _pictures(raw: Path, masks: Path, cases: Sequence[CaseDice], class_names: Sequence[str]) -> list[CasePicture]:
    pictures = []
    for words, scores in choose_cases(cases, 2):
        image = read_image([raw / "imagesTs" / f"{scores.case}_0000.nii.gz"])
        reference, prediction = (read_labels(folder / f"{scores.case}.nii.gz").array for folder in (raw / "labelsTs", masks))
        spacing = image.geometry.spacing
        png = overlay_png(image.array[0], reference, prediction, class_names=class_names, spacing=spacing, axis=spacing.index(max(spacing)))
        pictures.append(CasePicture(words, scores, png))
    return pictures


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _all_cases(exit_code: int) -> None:
    if exit_code != EXIT_DONE:
        raise RuntimeError("a stage of the demo left cases out; its messages are above")
