"""Trained runs on disk, as training leaves them, of the random tiny model: for tests of what comes after training."""

from pathlib import Path
from typing import Any

import torch

from fedsam_pipeline.evaluation.metrics import RULE
from fedsam_pipeline.files import write_json, write_text
from fedsam_pipeline.model.build import ModelSetup
from fedsam_pipeline.model.trained_files import write_adapter, write_documents
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import load_recipe
from tests.conftest import make_tiny_plans

CASES = {"site_a": [f"patient_mueller_{i}" for i in range(9)], "site_b": [f"patient_okafor_{i}" for i in range(8)]}
SECRETS = (*(case for cases in CASES.values() for case in cases), "mueller", "okafor", "/home/", "secret_project")
RUN = Path("Dataset001_Demo") / "flap_sam__plans__main" / "federated__fedavg__seed0"


def write_fold(folder: Path, *, seed: int = 0, val_cases: int = 6, plans: Plans | None = None, recipe: str = "flap_sam") -> Path:
    """A finished fold whose records name cases and paths, as real ones do."""
    setup = ModelSetup(plans or make_tiny_plans(), load_recipe(recipe), None)
    adapted = setup.build()
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapted.trained_tensors().values():
        tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    write_documents(folder, setup.plans, setup.recipe, adapted.manifest)
    write_adapter(folder, adapted.trained_tensors(), setup.bundle_info(2))
    write_json(folder / "dataset.json", {"labels": setup.plans.labels, "sites": CASES})
    write_json(folder / "run.json", run_json(folder.name.removeprefix("fold_"), val_cases))
    round_line = {"event": "round", "round": 2, "sites": {site: {"num_examples": float(len(cases))} for site, cases in CASES.items()}}
    write_text(folder / "progress.jsonl", f"{round_line}\n".replace("'", '"'))
    traffic = {site: {"up": {"bytes_message": 1000}, "down": {"bytes_message": 2000}} for site in CASES}
    write_json(
        folder / "communication.json", {"schema_version": 1, "rounds": [{"round": 1, "sites": traffic}, {"round": 2, "sites": traffic}]}
    )
    write_json(folder / "sites" / "site_a" / "validation.json", {"cases": [{"case": CASES["site_a"][0]}]})
    return folder


def run_json(fold: str, val_cases: int) -> dict[str, Any]:
    """``run.json`` of a finished federated run with ``val_cases`` validation cases at each site."""

    def score(dice: float, cases: int) -> dict[str, Any]:
        return {
            "classes": {"organ": dice + 0.1, "lesion": dice - 0.1},
            "dice": dice,
            "num_cases": cases,
            "absent": {"organ": 0, "lesion": 0},
        }

    return {
        "schema_version": 1,
        "status": "done",
        "run_id": "0123456789abcdef",
        "dataset": "Dataset001_Demo",
        "recipe": "flap_sam",
        "strategy": "fedavg",
        "fold": fold,
        "protocol": "federated",
        "sites": sorted(CASES),
        "held_out": None,
        "wire": "fp32",
        "rounds": 2,
        "local_steps": 2,
        "peak_learning_rate": 1e-3,
        "seed": 0,
        "arguments": {"recipe": "/home/someone/secret_project/mine.toml", "init": "/home/someone/models/fold_0"},
        "versions": {"python": "3.11", "torch": "2.13"},
        "hardware": {"processor": "cpu"},
        "seconds": 1.5,
        "final": {
            "schema_version": 1,
            "rule": RULE,
            "grid": "plan",
            "round": 2,
            "sites": {"site_a": score(0.7, val_cases), "site_b": score(0.5, 7)},
            "dice": 0.6,
            "all_sites": score(0.6, val_cases + 7),
        },
    }
