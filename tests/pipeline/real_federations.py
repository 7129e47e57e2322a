"""Hospitals for tests: each with folders of its own, all in one process or each behind a SuperNode."""

import json
import shutil
from pathlib import Path

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.dataset.synthetic import make_demo_dataset

NAME = "Dataset001_Demo"


def make_hospitals(root: Path) -> dict[str, dict[str, str]]:
    """The tiny cohort, each site's labelled cases in a folder of its own.

    Returns:
        Site to the variables that name its data folders.
    """
    whole = root / "whole" / NAME
    make_demo_dataset(whole, size="tiny")
    dataset = load_raw_dataset(whole)
    content = json.loads((whole / "dataset.json").read_text(encoding="utf-8"))
    shared = {key: value for key, value in content.items() if key not in ("sites", "test_sites", "patients")}
    variables = {}
    for site, cases in dataset.sites.items():
        raw = root / site / "raw" / NAME
        for case in cases:
            for path in (*dataset.image_paths(case), dataset.label_path(case)):
                target = raw / path.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        (raw / "dataset.json").write_text(json.dumps(shared | {"numTraining": len(cases)}), encoding="utf-8")
        (raw / "site.toml").write_text(f'site = "{site}"\n', encoding="utf-8")
        variables[site] = {f"fedsam_{name}": str(root / site / name) for name in ("raw", "preprocessed", "results")}
    return variables
