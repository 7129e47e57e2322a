"""Hospitals for tests: each with folders of its own, all in one process or each behind a SuperNode."""

from pathlib import Path

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.pipeline.demo_deployment import give_site

NAME = "Dataset001_Demo"


def make_hospitals(root: Path) -> dict[str, dict[str, str]]:
    """The tiny cohort, each site's labelled cases in a folder of its own.

    Returns:
        Site to the variables that name its data folders.
    """
    whole = root / "whole" / NAME
    make_demo_dataset(whole, size="tiny")
    dataset = load_raw_dataset(whole)
    for site in dataset.sites:
        give_site(dataset, site, root / site / "raw" / NAME)
    names = ("raw", "preprocessed", "results")
    return {site: {f"fedsam_{name}": str(root / site / name) for name in names} for site in dataset.sites}
