"""The product's training step against the published systems' way of writing it: images a second, memory, share of the machine's ceiling.

python -m benchmarks.training_step [--device cpu|cuda] [--modes NAME ...] [--turns 3] [--compile] [--only time|memory]

Weights are drawn at random: speed and memory do not depend on them. The reference (``benchmarks/reference/training_step.py``) takes steps
on batches that are ready in memory; ours is ``LocalTrainer`` as a site runs it, which also cuts and augments its slabs. Modes:

    flap_sam_256          ViT-B at 256 px, where attention windows are padded, for both alike
    flap_sam_224          ViT-B at 224 px, which needs no padding
    late_lora_224         late LoRA on ViT-B, every slab new
    late_lora_cached_224  the same from kept features, beside the references of flap_sam and of the late-LoRA step that keeps nothing
    ..._224_16            the same with 16 images a step; the planner gives images of 224 px four
    tiny_56, tiny_112     recipe default on LiteMedSAM's TinyViT

Before anything is timed, both compute logits and gradients of the same images in float32: the exit code is 1 where they differ by more
than ``TOLERATED`` of their norm. Printed: seconds of a turn, images a second, the median ratio of the turns, the share of the measured
ceiling (operations are counted, those of attention and LoRA included), how long a step waits for its slabs, and the peak of memory beyond
weights; their casts are no weights. A turn is several steps, as a round is: for the first no slab can be ready. Memory is that of eight
steps, since not all that one frees is of use to the next, after one that is not counted: what a process does once is no part of it. Lines
are appended to benchmarks/results/training_step.jsonl.

With ``--compile`` ours stands there a second time, as ``fedsam_train_federated --compile`` runs it.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import records
from benchmarks.ceiling import flop_counter, measure_ceiling
from benchmarks.reference.training_step import PlainSam, PlainTrainer, largest_difference
from benchmarks.side_by_side import in_turns, peak_of, print_peak, print_rows, rows
from fedsam_pipeline.memory import keep_freed_memory
from fedsam_pipeline.model.build import AdaptedModel, build_planned
from fedsam_pipeline.model.cast_linear import CastLinear, settle_frozen
from fedsam_pipeline.model.compilation import compile_encoder
from fedsam_pipeline.model.device import autocast_dtype
from fedsam_pipeline.model.registry import BASE_MODELS, base_model_spec
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import ChannelPlan, InputTerm, Plans, PromptPlan, ResamplingPlan, TrainingPlan
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from fedsam_pipeline.training.local_trainer import LocalTrainer, RoundResult, RunSchedule
from fedsam_pipeline.training.loss import segmentation_loss
from fedsam_pipeline.training.slab_loader import SlabLoader

RESULTS = records.RESULTS / "training_step.jsonl"
CASES = ("case_0", "case_1")
SLICES, CLASSES, RATE, SEED = 24, 3, 1e-4, 0
PEAK_STEPS = 8
"""of the turn whose memory is taken: it rises most over the first four"""
TOLERATED = 1e-3
PROGRAMS = ("reference", "ours", "compiled")
PADDED = "vit_b_padded"
"""ViT-B as the published systems run it: any multiple of the patch, windows padded"""


@contextmanager
def padded_vit() -> Iterator[None]:
    """``PADDED`` is a base model for a while."""
    BASE_MODELS[PADDED] = base_model_spec("vit_b").model_copy(update={"name": PADDED, "window_multiple": 16})
    try:
        yield
    finally:
        del BASE_MODELS[PADDED]


@dataclass(frozen=True)
class Mode:
    """What is compared: a recipe on a base model at one size.

    Attributes:
        recipe, base_model, image_size: of both programs.
        batch: images of a step.
        steps: of a turn.
        baseline: another recipe whose reference stands first in the table.
    """

    recipe: str
    base_model: str
    image_size: int
    batch: int
    steps: int
    baseline: str | None = None


MODES = {
    "flap_sam_256": Mode("flap_sam", PADDED, 256, batch=4, steps=4),
    "flap_sam_224": Mode("flap_sam", "vit_b", 224, batch=4, steps=4),
    "late_lora_224": Mode("late_lora", "vit_b", 224, batch=4, steps=4),
    "late_lora_cached_224": Mode("late_lora_cached", "vit_b", 224, batch=4, steps=4, baseline="flap_sam"),
    "flap_sam_224_16": Mode("flap_sam", "vit_b", 224, batch=16, steps=2),
    "late_lora_cached_224_16": Mode("late_lora_cached", "vit_b", 224, batch=16, steps=2, baseline="flap_sam"),
    "tiny_56": Mode("default", "lite_medsam", 56, batch=16, steps=4),
    "tiny_112": Mode("default", "lite_medsam", 112, batch=16, steps=2),
}


def plans_of(mode: Mode) -> Plans:
    """A plan for slices as large as the encoder's input, one slice a slab, its neighbours as channels."""
    size = mode.image_size
    return Plans(
        plans_name="plans",
        dataset_name="Dataset001_Speed",
        base_model=mode.base_model,
        labels={"background": 0} | {f"class_{number}": number for number in range(1, CLASSES)},
        channels=(ChannelPlan(name="MRI", scheme="zscore"),),
        target_spacing=(1.0, 1.0, 1.0),
        slice_axis=0,
        image_size=size,
        window=(size, size),
        window_overlap=0.5,
        slab_depth=1,
        slice_mixing="neighbours",
        encoder_inputs=tuple((InputTerm(channel=0, offset=offset),) for offset in (-1, 0, 1)),
        resampling=ResamplingPlan(image_order=1, image_order_coarse_axis=0, label_order=1),
        prompts=PromptPlan(mode="auto", jitter_mm=0.0, dropout=1.0),
        training=TrainingPlan(
            effective_batch=mode.batch,
            rounds=1,
            local_steps=mode.steps,
            learning_rate=RATE,
            lora_rank=32,
            foreground_fraction=0.5,
            mirror_axes=(1, 2),
        ),
        fingerprint_sha256="0" * 64,
        why={},
    )


def write_store(folder: Path, side: int) -> CaseStore:
    """Noise with a bright ball in it, larger than the window by an eighth."""
    store, shape = CaseStore(folder), (SLICES, side * 9 // 8, side * 9 // 8)
    for number, case in enumerate(CASES):
        generator = np.random.default_rng([SEED, number])
        image = generator.normal(0, 1, shape).astype(np.float32)
        distance = np.sqrt(sum(((grid - grid.mean()) / length) ** 2 for grid, length in zip(np.indices(shape), shape, strict=True)))
        labels = (distance < 0.3).astype(np.int8) + (distance < 0.15).astype(np.int8)
        properties = CaseProperties(
            case=case,
            site="site_a",
            original_size=shape,
            original_spacing=(1.0, 1.0, 1.0),
            original_origin=(0.0, 0.0, 0.0),
            original_direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
            canonical_size=shape,
            crop_start=(0, 0, 0),
            crop_size=shape,
            resampled_size=shape,
            slice_axis=0,
        )
        foreground = {value: generator.permutation(np.argwhere(labels == value))[:1000] for value in (1, 2)}
        store.write(case, (image + labels)[None], labels, properties, foreground)
    return store


class Comparison:
    """Both programs of a mode, on the same weights.

    Args:
        mode: what is compared.
        folder: for the store and the kept features.
        device: where both run.
        compiled: ours has its encoder compiled.
    """

    def __init__(self, mode: Mode, folder: Path, device: torch.device, *, compiled: bool = False) -> None:
        self.mode, self.plans, self.recipe, self.device, self.compiled = mode, plans_of(mode), load_recipe(mode.recipe), device, compiled
        self.adapted = build_planned(self.plans, self.recipe, rank=_rank(self.recipe), weights=None)
        generator = torch.Generator().manual_seed(SEED)
        for name, tensor in self.adapted.trained_tensors().items():
            if ".lora_B_" in name:  # zero at round 0, where LoRA would have no part in the comparison
                tensor.normal_(std=0.02, generator=generator)
        self.adapted.model.to(device)
        if compiled:
            compile_encoder(self.adapted.model, device)
        self.loader = SlabLoader(write_store(folder / "store", mode.image_size), CASES, self.plans)
        self.batches = [self._on_device(step) for step in range(mode.steps)]
        self.features = folder / "features"
        self.waited = self.seconds = 0.0

    def _on_device(self, step: int) -> tuple[Tensor, Tensor]:
        batch = self.loader.batch(SEED, 1, "site_a", step)
        return batch.images.to(self.device), batch.labels.to(self.device)

    def reference(self) -> PlainSam:
        """The published systems' model with the same weights."""
        return PlainSam(self.adapted).to(self.device)

    def plain_turn(self, steps: int | None = None) -> Callable[[], float]:
        """The reference's steps, so many or a turn's."""
        trainer = PlainTrainer(self.reference(), self.recipe, RATE)
        return lambda: trainer.steps(self.batches[:steps])

    def our_turn(self, *, prepared: bool = True) -> Callable[..., RoundResult]:
        """A round of ours, of the steps that it is told or else a turn's. Features that a recipe keeps are computed before, or in it."""
        settle_frozen(self.adapted.model, autocast_dtype(self.device), compiled=self.compiled)
        trainer = LocalTrainer(self.adapted, self.loader, self.plans, self.recipe, self.device, feature_folder=self.features)
        rounds = iter(range(1, 1 << 30))

        def turn(steps: int = self.mode.steps) -> RoundResult:
            schedule = RunSchedule(rounds=1 << 30, local_steps=steps, peak_learning_rate=RATE, seed=SEED)
            result = trainer.train_round(schedule, round_number=next(rounds), site="site_a")
            self.waited, self.seconds = self.waited + result.data_seconds, self.seconds + result.seconds
            return result

        if prepared and self.recipe.cache is not None:  # one pass over the whole pool
            turn(len(CASES) * self.recipe.cache.slabs_per_case // self.mode.batch)
            self.waited = self.seconds = 0.0
        return turn

    def difference(self) -> float:
        """Of logits and gradients in float32 on one image, as a share of the reference's norm."""
        plain, (images, labels) = self.reference(), (part[:1] for part in self.batches[0])
        found = []
        for model, trained in ((plain, plain.trained()), (self.adapted.model, _trained(self.adapted))):
            logits = model(images)
            segmentation_loss(logits, labels, self.recipe.loss).backward()  # type: ignore[no-untyped-call]
            gradients = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
            found.append(({"logits": logits.detach()}, gradients))
            for parameter in trained.values():
                parameter.grad = None
        return max(largest_difference(ours, theirs) for theirs, ours in zip(*found, strict=True))


def _rank(recipe: Recipe) -> int:
    assert recipe.lora is not None
    return 32 if recipe.lora.rank == "auto" else recipe.lora.rank


def _trained(adapted: AdaptedModel) -> dict[str, torch.nn.Parameter]:
    parameters = dict(adapted.model.named_parameters())
    return {name: parameters[name] for name in adapted.manifest.trained_names}


class Counted:
    """A program whose first run is counted: ``flop`` are its floating-point operations."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run, self.flop = run, 0.0

    def __call__(self) -> None:
        if self.flop:
            self._run()
            return
        with flop_counter() as counter:
            self._run()
        self.flop = float(counter.get_total_flops())


def measure_time(name: str, turns: int, device: torch.device, *, compiled: bool = False) -> bool:
    """Prints a mode's table and keeps it; whether all compute the same."""
    mode, precision = MODES[name], autocast_dtype(device) or torch.float32
    ours, plain = f"ours, {_named(precision)}", f"reference, {_named(torch.float32)}"
    with tempfile.TemporaryDirectory() as folder:
        counted = {}
        if mode.baseline is not None:
            other = Comparison(replace(mode, recipe=mode.baseline, baseline=None), Path(folder) / "baseline", device)
            counted[f"{mode.baseline}'s {plain}"] = Counted(other.plain_turn())
        comparison = Comparison(mode, Path(folder) / "ours", device)
        difference = comparison.difference()
        counted |= {plain: Counted(comparison.plain_turn()), ours: Counted(comparison.our_turn())}
        programs: dict[str, Callable[[], object]] = dict(counted)
        if compiled:
            other = Comparison(mode, Path(folder) / "compiled", device, compiled=True)
            difference = max(difference, other.difference())
            programs[f"{ours}, compiled"] = other.our_turn()
        seconds = in_turns(programs, turns, device)
        waited = comparison.waited / comparison.seconds
        of_precision = {wanted: measure_ceiling(device, wanted) for wanted in (torch.float32, precision)}
    ceilings = {program: of_precision[precision if program.startswith(ours) else torch.float32] for program in programs}
    flop = dict.fromkeys(programs, counted[ours].flop) | {program: run.flop for program, run in counted.items()}
    size = f"{mode.image_size} px, batch {mode.batch}"
    table = rows(seconds, size, units=mode.batch * mode.steps, flop=flop, ceilings=ceilings)
    print(f"\n{name}: recipe {mode.recipe} on {mode.base_model}, random weights; {mode.steps} step(s) a turn, {turns} turns")
    print_rows(table, "images")
    print(f"logits and gradients differ by {difference:.1e} of their norm in float32; {waited:.1%} of our time is waiting for slabs")
    line = {
        "mode": name,
        "turns": turns,
        "steps": mode.steps,
        "difference": difference,
        "waited": waited,
        "rows": [row.to_json() for row in table],
    }
    records.keep(RESULTS, line | _where(device))
    return difference <= TOLERATED


def measure_memory(name: str, device: torch.device, *, compiled: bool = False) -> None:
    """Prints what a turn of every program takes, each in a process of its own, and keeps it."""
    arguments = ["--modes", name, "--device", device.type, "--peak"]
    taken = {program: peak_of("benchmarks.training_step", [*arguments, program]) for program in PROGRAMS[: 3 if compiled else 2]}
    shown = ", ".join(f"{program} {number / 2**20:.0f} MiB" for program, number in taken.items())
    shares = ", ".join(f"{program} {number / taken['reference']:.2f}" for program, number in taken.items() if program != "reference")
    print(f"{name}: {PEAK_STEPS} steps take, beyond weights: {shown}; {shares} of the reference's")
    records.keep(RESULTS, {"mode": name, "steps": PEAK_STEPS, "peak_bytes": taken} | _where(device))


def _where(device: torch.device) -> dict[str, str | int]:
    """Of a line of results: what it was measured on."""
    return {"device": device.type, "threads": torch.get_num_threads(), "torch": str(torch.__version__), **records.machine()}


def _named(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def show_peak(name: str, program: str, device: torch.device) -> None:
    """What the processes that ``measure_memory`` starts do."""
    parameter = torch.zeros(1, requires_grad=True)
    parameter.sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW([parameter]).step()  # what torch imports for its first step is no part of ours
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(replace(MODES[name], steps=PEAK_STEPS), Path(folder), device, compiled=program == "compiled")
        # what a process does once, such as compiling, is no part of it
        if program == "reference":
            comparison.plain_turn(steps=1)()
            turn: Callable[[], object] = comparison.plain_turn()
        else:
            comparison.features = Path(folder) / "features of the first step"
            comparison.our_turn(prepared=False)(1)
            comparison.features = Path(folder) / "features"
            turn = comparison.our_turn(prepared=False)
        copies = sum(
            cast.nbytes for layer in comparison.adapted.model.modules() if isinstance(layer, CastLinear) for cast in layer.kept_casts
        )
        if device.type == "cpu":
            print_peak(turn, also=copies)
            return
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        turn()
        print(torch.cuda.max_memory_allocated(device) - before + copies)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--modes", nargs="+", choices=sorted(MODES), default=list(MODES))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="ours a second time, with its encoder compiled")
    parser.add_argument("--only", choices=("time", "memory"), help="leave the other out")
    parser.add_argument("--peak", choices=PROGRAMS, help="take one turn of one program and print what memory it takes")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    keep_freed_memory()  # as at a site
    with padded_vit():
        if arguments.peak:
            show_peak(arguments.modes[0], arguments.peak, device)
            return 0
        print(f"{device.type}, {torch.get_num_threads()} threads")
        agree = []
        for name in arguments.modes:
            if arguments.only != "memory":
                agree.append(measure_time(name, arguments.turns, device, compiled=arguments.compile))
            if arguments.only != "time":
                measure_memory(name, device, compiled=arguments.compile)
        return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
