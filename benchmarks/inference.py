"""Prediction of a CT volume: ours beside five-slice windows whose slices are all encoded again, in turns, at equal image size.

python -m benchmarks.inference [--base_model vit_b] [--image_size 224] [--slices 200] [--side 512] [--air 10] [--classes 3]
    [--reference_slices 8] [--tissue_slices 48] [--turns 2] [--no_peaks] [--device cpu]

The volume is made up: --slices of --side x --side voxels, preprocessed, the --air first and the --air last of them outside the body.
Weights are random; speed does not depend on them. Both scale whole planes to --image_size, and go from the volume to its mask. Not all is
measured whole: the reference predicts --reference_slices in the middle of the volume (and holds the logits of all of it), and "without
empty slices" is --tissue_slices of it. All figures are for one slice. Printed: seconds (medians), slices a second, times as fast as the
reference (median over the turns), memory that a run adds in a process of its own (on a GPU the GPU's, in this process), and the share of
the ceiling, a large matrix product in the precision that each computes in. Exit code 1 where the logits of the reference's slices differ
by more than 5 % (root mean square; 0.01 % without bfloat16). Appends a line to benchmarks/results/inference.jsonl.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import records
from benchmarks.ceiling import flop_counter, measure_ceiling
from benchmarks.made_up_ct import ORGANS, ct_plan, ct_volume
from benchmarks.reference.inference import plain_model, predict
from benchmarks.side_by_side import in_turns, peak_of, print_peak, print_rows, rows
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.predictor import Predictor, SliceModel
from fedsam_pipeline.model.build import build_planned
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.model.lora import merge_lora
from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.preprocessing.normalize import normalize
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import load_recipe

RESULTS = records.RESULTS / "inference.jsonl"
REFERENCE, WHOLE, TISSUE = "reference, five slices for each", "ours, all slices", "ours, without empty slices"
SPACING = (2.5, 0.8, 0.8)
"""mm, (z, y, x), of image and plan: neither resamples"""
MAX_ERROR = {torch.bfloat16: 0.05, torch.float32: 1e-4}


@dataclass(frozen=True)
class Sizes:
    """Of the volume, and how much of it is measured."""

    slices: int
    side: int
    air: int
    reference_slices: int
    tissue_slices: int

    def middle(self, count: int) -> range:
        """So many slices around the middle."""
        first = (self.slices - count) // 2
        return range(first, first + count)


class _BlankModel:
    """Counts the images that a model would see (``SliceModel``)."""

    training = False

    def __init__(self, plans: Plans) -> None:
        self._shape = (plans.num_classes, plans.image_size, plans.image_size)
        self.encoded = self.decoded = 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded += len(images)
        return images[:, :1, :1, :1]

    def decode(self, embeddings: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:  # noqa: ARG002
        self.decoded += len(embeddings)
        return embeddings.expand(-1, *self._shape)


class Contest:
    """Both programs on one volume.

    Args:
        plans: of both.
        sizes: what is measured.
        device: where both compute.
    """

    def __init__(self, plans: Plans, sizes: Sizes, device: torch.device) -> None:
        self.plans, self.sizes, self.device = plans, sizes, device
        self.dtype = autocast_dtype(device)
        self.volume = normalize(ct_volume(sizes.slices, sizes.side, sizes.air)[None].astype(np.float32), plans.channels)

    def plain(self) -> PromptFreeSam:
        """The reference's model."""
        return plain_model(self.plans.base_model, self.plans.num_classes, self.plans.image_size).to(self.device)

    def ours(self) -> PromptFreeSam:
        """The product's, as prediction has it: LoRA merged."""
        model = build_planned(self.plans, load_recipe("flap_sam"), rank=self.plans.training.lora_rank, weights=None).model.eval()
        merge_lora(model)
        return model.requires_grad_(False).to(self.device)

    def predictor(self, model: SliceModel) -> Predictor:
        """As ``fedsam_predict --disable_tta`` makes it."""
        return Predictor(model, self.plans, self.device, self.dtype)

    def run_reference(self, model: PromptFreeSam) -> torch.Tensor:
        """The mask of the slices in the middle."""
        return predict(model, torch.from_numpy(self.volume[0]), self.sizes.middle(self.sizes.reference_slices))[1]

    def run_ours(self, model: SliceModel, slices: range) -> NDArray[np.unsignedinteger]:
        """The mask of some slices."""
        part = self.volume[:, slices.start : slices.stop]
        size = (len(slices), self.sizes.side, self.sizes.side)
        properties = CaseProperties(
            case="ct",
            original_size=size,
            original_spacing=SPACING,
            original_origin=(0.0, 0.0, 0.0),
            original_direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
            canonical_size=size,
            crop_start=(0, 0, 0),
            crop_size=size,
            resampled_size=size,
            slice_axis=0,
        )
        return export_stream(self.predictor(model).stream_case(part), properties, self.plans)

    def programs(self, plain: PromptFreeSam | None, ours: PromptFreeSam) -> dict[str, Callable[[], object]]:
        """By name; without ``plain`` the product's alone."""
        found: dict[str, Callable[[], object]] = {} if plain is None else {REFERENCE: lambda: self.run_reference(plain)}
        found[WHOLE] = lambda: self.run_ours(ours, range(self.sizes.slices))
        found[TISSUE] = lambda: self.run_ours(ours, self.sizes.middle(self.sizes.tissue_slices))
        return found

    def error(self, plain: PromptFreeSam, ours: PromptFreeSam) -> tuple[float, float]:
        """Root mean square of the difference over that of the reference's logits, and the share of voxels with the same class."""
        wanted = self.sizes.middle(self.sizes.reference_slices)
        theirs = predict(plain, torch.from_numpy(self.volume[0]), wanted)[0][:, wanted.start : wanted.stop].numpy()
        around = self.volume[:, wanted.start - 1 : wanted.stop + 1]  # with the neighbours that the encoder sees
        own = self.predictor(ours).predict_case(around)[:, 1:-1]
        error = float(np.sqrt(np.mean((theirs - own) ** 2) / np.mean(theirs**2)))
        return error, float((theirs.argmax(axis=0) == own.argmax(axis=0)).mean())

    def flop(self, plain: PromptFreeSam) -> tuple[dict[str, float], int]:
        """Operations for a slice, by program, and how many slices of the whole volume the model saw."""
        size = self.plans.image_size
        image = torch.zeros(1, 3, size, size, device=self.device)
        with torch.no_grad(), flop_counter() as encoding:
            embedding = plain.encode(image)
        with torch.no_grad(), flop_counter() as decoding:
            plain.decode(embedding)
        one, other = encoding.get_total_flops(), decoding.get_total_flops()
        blank = _BlankModel(self.plans)
        self.run_ours(blank, range(self.sizes.slices))
        whole = (blank.encoded * one + blank.decoded * other) / self.sizes.slices
        return {REFERENCE: 5 * one + other, WHOLE: whole, TISSUE: one + other}, blank.encoded


def _peaks(contest: Contest, programs: dict[str, Callable[[], object]], arguments: list[str]) -> dict[str, int]:
    if contest.device.type != "cuda":
        return {name: peak_of("benchmarks.inference", [*arguments, "--only", name]) for name in programs}
    found = {}
    for name, run in programs.items():
        torch.cuda.reset_peak_memory_stats(contest.device)
        before = torch.cuda.memory_allocated(contest.device)
        run()
        found[name] = torch.cuda.max_memory_allocated(contest.device) - before
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", default="vit_b")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--air", type=int, default=10, help="slices at each end that show air alone")
    parser.add_argument("--classes", type=int, default=3, help="background included")
    parser.add_argument("--reference_slices", type=int, default=8)
    parser.add_argument("--tissue_slices", type=int, default=48)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--no_peaks", action="store_true", help="leave out the memory, which takes as long again")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", metavar="PROGRAM", help="run one program once and print the memory that it added")
    given = parser.parse_args()
    sizes = Sizes(given.slices, given.side, given.air, given.reference_slices, given.tissue_slices)
    if max(given.reference_slices + 2, given.tissue_slices) > given.slices - 2 * given.air:
        parser.error("--reference_slices and --tissue_slices: more than there are with tissue")
    plans = ct_plan(given.base_model, given.image_size, classes=given.classes, window=given.side, spacing=SPACING, clip=ORGANS)
    contest = Contest(plans, sizes, choose_device(given.device))
    if given.only:
        plain = contest.plain() if given.only == REFERENCE else None
        print_peak(contest.programs(plain, contest.ours())[given.only])
        return 0
    plain, ours = contest.plain(), contest.ours()
    precision = contest.dtype or torch.float32
    error, same = contest.error(plain, ours)
    flop, seen = contest.flop(plain)
    programs = contest.programs(plain, ours)
    counts = {REFERENCE: given.reference_slices, WHOLE: given.slices, TISSUE: given.tissue_slices}
    full, own = measure_ceiling(contest.device, torch.float32), measure_ceiling(contest.device, precision)
    taken = in_turns(programs, given.turns, contest.device)
    flags = [f"--{name}={value}" for name, value in vars(given).items() if name not in ("only", "turns", "no_peaks")]
    found = rows(
        {name: [seconds / counts[name] for seconds in each] for name, each in taken.items()},
        f"{given.base_model}, {given.image_size} px",
        units=1,
        flop=flop,
        peaks=None if given.no_peaks else _peaks(contest, programs, flags),
        ceilings={REFERENCE: full, WHOLE: own, TISSUE: own},
    )
    print(
        f"CT of {given.slices} x {given.side} x {given.side} voxels, {2 * given.air} slices of air, {given.classes} classes; "
        f"random weights; {contest.device.type}, {own.dtype}, {torch.get_num_threads()} thread(s)"
    )
    print(f"measured slices: {', '.join(f'{name}: {count}' for name, count in counts.items())}; all figures are for one slice")
    print_rows(found, "slices")
    print(
        f"the model saw {seen} of {given.slices} slices; ceiling {full.flops / 1e9:.0f} GFLOP/s float32, {own.flops / 1e9:.0f} {own.dtype}"
    )
    agree = error <= MAX_ERROR[precision]
    print(f"logits differ by {error:.2g} (root mean square), {same:.2%} of the voxels have one class: {'agree' if agree else 'DISAGREE'}")
    record = vars(given) | {"precision": own.dtype, "seen": seen, "error": error, "same_class": same, "threads": torch.get_num_threads()}
    del record["only"]
    ceilings = {"float32": full.flops, own.dtype: own.flops}
    records.keep(RESULTS, record | {"ceilings": ceilings, "rows": [row.to_json() for row in found], **records.machine()})
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
