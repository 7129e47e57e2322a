"""What single choices of a plan are worth: the same training with one value changed, side by side.

python -m benchmarks.plan_choices PREPROCESSED [-p plans] [--choices plan,magnified,...] [--steps 250] [--fold 0] [-r flap_sam]

PREPROCESSED is a planned and preprocessed dataset (`fedsam_plan_and_preprocess`). All its sites are trained as one (centralized) on the
training part of the fold, every choice from the same seed on the same slabs, and scored on the fold's validation cases, on the plan's grid.

    plan        as it is
    unmixed     no slice sees another: one channel goes to all three encoder inputs
    neighbours  the slices before and after in the encoder's other two inputs (one channel only)
    mixer       a slice mixer after the neck, in slabs of 4
    magnified   windows are enlarged to twice the image size
    padded      one voxel is one pixel, whatever the plan says
    box, point  trained to take prompts as well; scored without and with prompts, drawn from the reference with the plan's jitter

Printed: Dice, seconds of training, and the difference and ratio to `plan`. Appends a line each to benchmarks/results/plan_choices.jsonl.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import records
from fedsam_pipeline.dataset.label_scheme import IGNORE
from fedsam_pipeline.dataset.splits import load_splits
from fedsam_pipeline.evaluation.metrics import counts
from fedsam_pipeline.evaluation.summary import summarize_site
from fedsam_pipeline.files import read_json
from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.inference.prompts import VolumePrompt
from fedsam_pipeline.memory import keep_freed_memory
from fedsam_pipeline.model.build import build_planned, resolved_rank
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.weights import find_weights
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from fedsam_pipeline.training.local_trainer import LocalTrainer, RunSchedule
from fedsam_pipeline.training.prompt_draws import draw_prompts
from fedsam_pipeline.training.randomness import sample_generator
from fedsam_pipeline.training.slab_loader import SlabLoader

RESULTS = records.RESULTS / "plan_choices.jsonl"


def _single(offsets: tuple[int, int, int]) -> list[list[dict[str, int]]]:
    return [[{"channel": 0, "offset": offset}] for offset in offsets]


CHOICES: dict[str, Callable[[Plans], dict[str, Any]]] = {
    "plan": lambda _: {},
    "unmixed": lambda _: {"slice_mixing": "none", "encoder_inputs": _single((0, 0, 0))},
    "neighbours": lambda _: {"slice_mixing": "neighbours", "encoder_inputs": _single((-1, 0, 1))},
    "mixer": lambda _: {"slice_mixing": "mixer", "slab_depth": 4, "encoder_inputs": _single((0, 0, 0))},
    "magnified": lambda plans: {"image_size": 2 * plans.image_size},
    "padded": lambda plans: {"window": (plans.image_size, plans.image_size)},
    "box": lambda plans: {"prompts": plans.prompts.to_dict() | {"mode": "box"}},
    "point": lambda plans: {"prompts": plans.prompts.to_dict() | {"mode": "point"}},
}


def train_and_score(plans: Plans, recipe: Recipe, store: CaseStore, train: list[str], val: list[str], steps: int) -> dict[str, Any]:
    """Dice without and, where the plan has them, with prompts, and seconds of training."""
    device = choose_device("auto")
    spec = base_model_spec(plans.base_model)
    adapted = build_planned(plans, recipe, rank=resolved_rank(recipe, plans.training.lora_rank), weights=find_weights(spec))
    adapted.model.to(device)
    trainer = LocalTrainer(adapted, SlabLoader(store, train, plans), plans, recipe, device)
    schedule = RunSchedule(rounds=1, local_steps=steps, peak_learning_rate=plans.training.learning_rate, seed=0)
    started = time.perf_counter()
    with tqdm(total=steps, unit="step", disable=None) as bar:

        def on_step(_: int) -> None:
            bar.update()

        result = trainer.train_round(schedule, round_number=1, site="pooled", on_step=on_step)
    found: dict[str, Any] = {"seconds": time.perf_counter() - started, "loss": result.loss}
    predictor = Predictor(adapted.model.eval(), plans, device, autocast_dtype(device))
    found["dice"] = _score(predictor, plans, store, val, prompted=False)
    found["dice_prompted"] = _score(predictor, plans, store, val, prompted=True) if plans.prompts.mode != "auto" else None
    return found


def _score(predictor: Predictor, plans: Plans, store: CaseStore, val: list[str], *, prompted: bool) -> float:
    tables = []
    for number, name in enumerate(tqdm(val, unit="case", disable=None)):
        case = store.open(name)
        labels = np.asarray(case.labels[:])
        prompts = _reference_prompts(labels, plans, number) if prompted else []
        prediction = predictor.predict_case(case.image, prompts=prompts).argmax(axis=0)
        tables.append(counts(labels, prediction, plans.num_classes, ignore=IGNORE))
    return summarize_site(tables).dice


def _reference_prompts(labels: NDArray[Any], plans: Plans, number: int) -> list[VolumePrompt]:
    """Prompts on every slice (S, H, W) of the reference; voxels are pixels here."""
    exact = Plans.from_dict(plans.to_dict() | {"image_size": 1, "window": (1, 1), "prompts": plans.prompts.to_dict() | {"dropout": 0.0}})
    drawn = draw_prompts(labels.astype(np.int64), exact, sample_generator(0, 0, "reference", number))
    return [
        VolumePrompt(prompt.kind, prompt.label, (s, prompt.box[1], prompt.box[0]), (s, prompt.box[3], prompt.box[2]))
        for s, prompts in enumerate(drawn)
        for prompt in prompts
    ]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preprocessed", type=Path)
    parser.add_argument("-p", default="plans", help="name of the plan")
    parser.add_argument("-r", default="flap_sam", help="recipe")
    parser.add_argument("--choices", default="plan,unmixed,mixer,magnified,box,point", help=f"of {', '.join(CHOICES)}; plan comes first")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--fold", type=int, default=0)
    arguments = parser.parse_args()
    keep_freed_memory()
    planned = Plans.load(arguments.preprocessed / f"{arguments.p}.json")
    dataset = read_json(arguments.preprocessed / "dataset.json")
    cases = [case for members in dataset["sites"].values() for case in members]
    fold = load_splits(arguments.preprocessed / "splits_final.json", cases, dataset.get("patients", {}))[arguments.fold]
    store = CaseStore(store_folder(arguments.preprocessed, planned))
    recipe = load_recipe(arguments.r)
    print(f"{planned.dataset_name}, {len(fold['train'])} cases to train, {len(fold['val'])} to score, {arguments.steps} steps")
    print(f"{'choice':<12}{'image':>6}{'Dice':>9}{'to plan':>9}{'prompted':>10}{'seconds':>9}{'ratio':>7}")
    first: dict[str, Any] | None = None
    for choice in dict.fromkeys(["plan", *arguments.choices.split(",")]):
        plans = Plans.from_dict(planned.to_dict() | CHOICES[choice](planned))
        found = train_and_score(plans, recipe, store, sorted(fold["train"]), sorted(fold["val"]), arguments.steps)
        first = first or found
        prompted = "" if found["dice_prompted"] is None else f"{found['dice_prompted']:.4f}"
        print(
            f"{choice:<12}{plans.image_size:>6}{found['dice']:>9.4f}{found['dice'] - first['dice']:>+9.4f}{prompted:>10}"
            f"{found['seconds']:>9.0f}{found['seconds'] / first['seconds']:>7.2f}",
            flush=True,
        )
        facts = {
            "dataset": planned.dataset_name,
            "choice": choice,
            "steps": arguments.steps,
            "fold": arguments.fold,
            "recipe": recipe.name,
            "image_size": plans.image_size,
            "threads": torch.get_num_threads(),
        }
        records.keep(RESULTS, facts | found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
