"""A fold folder as training leaves it, written by hand: its figures are known, its names try to break out of the page."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedsam_pipeline.evaluation.metrics import RULE
from fedsam_pipeline.evaluation.summary import combine_sites, summarize_site
from fedsam_pipeline.files import write_json, write_text
from fedsam_pipeline.specs.execution import Execution
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry
from fedsam_pipeline.specs.recipe import load_recipe
from tests.conftest import make_tiny_plans

RUN = Path("Dataset001_Demo") / "flap_sam__plans__main" / "federated__fedavg__seed0" / "fold_0"
CLASSES = ("organ", "lesion")
EVIL = "<b>bold</b>&\"'"
"""in names of cases, reasons and packages: must come out as text"""
SECRET = "mueller_1949"
"""in every name of a case"""
ROUNDS = 4


def round_lines(rounds: int = ROUNDS, sites: tuple[str, ...] = ("site_a", "site_b")) -> list[dict[str, Any]]:
    """Lines of ``progress.jsonl``: every second round scores the model of the round before."""
    lines = []
    for number in range(1, rounds + 1):
        scored = number % 2 == 0
        losses = {site: {"num_examples": 8.0, "loss": (1.5 + at) / number, "seconds": 1.0} for at, site in enumerate(sites)}
        dice = {site: {"classes": {"organ": number / 7}, "dice": number / 7} for site in sites}
        lines.append(
            {
                "event": "round",
                "round": number,
                "learning_rate": 1e-3,
                "sites": losses,
                "refused": {},
                "validated_round": number - 1 if scored else None,
                "validation": dice if scored else {},
                "dice": number / 7 if scored else None,
                "bytes_up": 1_103_000,
                "bytes_down": 2_307_000,
                "seconds": 3.25,
            }
        )
    return lines


def final_line(dice: float, rounds: int = ROUNDS) -> dict[str, Any]:
    return {
        "event": "final",
        "round": rounds,
        "validation": {"site_a": {"dice": dice + 0.05}, "site_b": {"dice": dice - 0.05}},
        "dice": dice,
    }


def case_rows(site: str, number: int) -> list[dict[str, Any]]:
    """Rows of ``sites/SITE/validation.json``; in the first the second class is absent in both masks."""
    rows = []
    for at in range(number):
        lesion = [0, 0, 0] if at == 0 else [40 + 3 * at, 11, 7 + at]
        rows.append({"case": f"{SECRET}_{site}_{at}{EVIL}", "site": site, "tp_fp_fn": [[100 + 9 * at, 31 - at, 17], lesion]})
    return rows


def write_run(root: Path, *, sites: dict[str, int] | None = None, where: Path = RUN, bytes_up: int = 275_750) -> Path:
    """The fold of a finished federated run.

    Args:
        root: folder of the results.
        sites: validation cases of every site.
        where: below ``root``.
        bytes_up: of a message to the server.

    Returns:
        The fold folder.
    """
    sites = {"site_a": 5, "site_b": 4} if sites is None else sites
    folder = root / where
    plans = make_tiny_plans(why={"target_spacing": f"median of 137 cases {EVIL}", "training.rounds": "few", "gone": "without a value"})
    recipe = load_recipe("flap_sam")
    tensors = (
        TensorEntry(name="lora_A", shape=(4, 321), dtype="float32", travels="both"),
        TensorEntry(name="own", shape=(77,), dtype="float32", travels="none"),
    )
    plans.save(folder / "plans.json")
    recipe.save(folder / "recipe.json")
    Manifest(recipe="flap_sam", base_model="tiny_random", tensors=tensors).save(folder / "manifest.json")
    write_json(folder / "dataset.json", {"labels": plans.labels, "sites": {site: [SECRET] for site in sites}})
    rows = {site: case_rows(site, number) for site, number in sites.items()}
    for site, of_site in rows.items():
        write_json(folder / "sites" / site / "validation_shared.json", {"schema_version": 1, "grid": "plan", "cases": of_site})
        execution = Execution(
            device="cpu",
            micro_batch=3,
            gradient_checkpointing=False,
            batch=4,
            image_bytes=5_000,
            budget_bytes=9_000,
            why=f"room for 3 {EVIL}",
        )
        execution.save(folder / "execution" / f"{site}.json")
    scores = {site: summarize_site([np.array(row["tp_fp_fn"]) for row in of_site]) for site, of_site in rows.items()}
    together = combine_sites(scores).to_dict(CLASSES)
    summary = {"schema_version": 1, "rule": RULE, "grid": "plan", "round": ROUNDS}
    summary |= {"sites": {site: each.to_dict(CLASSES) for site, each in scores.items()}, "dice": together["dice"], "all_sites": together}
    write_json(folder / "validation" / "summary.json", summary)
    way = {"tensors": 1, "bytes_payload_before": 5_136_000, "codec_seconds": 0.125}
    traffic = {
        site: {
            "down": way | {"bytes_payload_after": 1_284_000, "bytes_message": 576_750},
            "up": way | {"bytes_payload_after": 642_000, "bytes_message": bytes_up},
        }
        for site in sites
    }
    rounds = [{"round": number, "message": "train.round", "wire": "fp32", "sites": traffic} for number in range(1, ROUNDS + 1)]
    last = {"round": ROUNDS, "message": "evaluate.fold", "wire": "fp32", "sites": traffic, "seconds": 1.0}
    write_json(folder / "communication.json", {"schema_version": 1, "rounds": [*rounds, last]})
    write_text(folder / "progress.jsonl", "".join(json.dumps(line) + "\n" for line in [*round_lines(), final_line(together["dice"])]))
    write_json(folder / "run.json", run_json(sorted(sites)))
    return folder


def run_json(sites: list[str]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "status": "done",
        "run_id": "09b27b1863e2384f",
        "dataset": "Dataset001_Demo",
        "recipe": "flap_sam",
        "strategy": "fedavg",
        "fold": "0",
        "protocol": "federated",
        "sites": sites,
        "held_out": None,
        "cases_sha256": "c" * 64,
        "plan_sha256": "d" * 64,
        "recipe_sha256": "e" * 64,
        "weights_sha256": "f" * 64,
        "encoder": "pretrained",
        "wire": "fp32",
        "rounds": ROUNDS,
        "local_steps": 13,
        "peak_learning_rate": 0.00123,
        "seed": 0,
        "arguments": {"recipe": "/home/mueller/secret_project/mine.toml", "learning_rate": None, "val_every": 2, "overwrite": False},
        "versions": {"python": "3.11.7", f"torch{EVIL}": "2.13.0"},
        "hardware": {"processor": "AMD EPYC", "cores": 2, "device": "cpu", "bfloat16": True},
        "workers": 2,
        "seconds": 914.6,
        "peak_memory_bytes": 1_873_793_024,
    }
