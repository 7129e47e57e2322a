"""Image encoders: the published ones, used plainly in float32, against ours in float32 and, where the machine has units for it, bfloat16.

python -m benchmarks.encoders [--cases vit_b:224:4 lite_medsam:56:16 ...] [--large] [--turns 5] [--no_peaks] [--device auto|cpu|cuda]

A case is BASE_MODEL:SIZE:BATCH, size in pixels. References: segment_anything's ImageEncoderViT, and benchmarks/reference/tiny_vit.py for
TinyViT. Weights are random (shared by all), which changes neither work nor time. Every case is timed forward, without gradients, and as a
training step: forward and backward with the LoRA of recipe flap_sam in the encoder, rank 8, all else frozen. At sizes that are no multiple
of ViT's window (256, 1024) both pad. --large adds ViT-B at 1024. Printed: median seconds, images a second, the median ratio of the turns,
the peak memory of each program in a process of its own, and the share of what a large matrix product reaches in this run (the operations
counted are those of the reference). Outputs, and in the step all gradients of LoRA, must agree: the norm of the difference is
within 1e-4 of the reference's norm in float32, a tenth of it in bfloat16; otherwise the exit code is 1.
Appends a line to benchmarks/results/encoders.jsonl.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import records
from benchmarks.ceiling import Ceiling, flop_counter, measure_ceiling
from benchmarks.reference.tiny_vit import PlainTinyViT
from benchmarks.side_by_side import Row, in_turns, peak_of, print_peak, print_rows, rows
from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.memory import keep_freed_memory
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.model.injection import attention_modules, fused_rows
from fedsam_pipeline.model.lora import LoRALinear, lora_layers
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.tiny_vit import TinyViT
from fedsam_pipeline.model.vit import fast_vit, published_vit

RESULTS = records.RESULTS / "encoders.jsonl"
CASES = ("vit_b:224:4", "vit_b:256:4", "vit_b:448:1", "lite_medsam:56:16", "lite_medsam:112:16", "lite_medsam:224:4")
LARGE = "vit_b:1024:1"
KINDS = ("forward", "step")
TOLERATED = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
RANK = 8


@dataclass(frozen=True)
class Case:
    """What is encoded, and by what."""

    base_model: str
    size: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> "Case":
        """``BASE_MODEL:SIZE:BATCH``."""
        name, size, batch = text.split(":")
        return cls(name, int(size), int(batch))

    def __str__(self) -> str:
        return f"{self.base_model}:{self.size}:{self.batch}"


@dataclass(frozen=True)
class Program:
    """An encoder and the type it computes in."""

    name: str
    encoder: nn.Module
    dtype: torch.dtype

    def run(self, kind: str, images: Tensor) -> list[Tensor]:
        """The embeddings, and after a step the gradients of LoRA."""
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if kind == "forward":
                with torch.no_grad():
                    return [self.encoder(images)]
            output = self.encoder(images)
        weights = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(
            output
        )  # the last norm hides what is the same everywhere
        (output.float() * weights).mean().backward()
        factors = [p for layer in lora_layers(self.encoder) for n, p in layer.named_parameters() if ".lora_" in f".{n}"]
        found = [output.detach(), *(factor.grad for factor in factors if factor.grad is not None)]
        self.encoder.zero_grad(set_to_none=True)
        return found


def published(case: Case) -> nn.Module:
    """The reference with random weights, position terms included."""
    spec = base_model_spec(case.base_model)
    torch.manual_seed(0)
    plain = published_vit(spec, case.size) if spec.encoder == "vit" else PlainTinyViT(spec)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "rel_pos" in name or "pos_embed" in name or "attention_biases" in name:
                parameter.normal_(std=0.1)
    return plain.eval().requires_grad_(False)


def ours_of(case: Case, plain: nn.Module) -> nn.Module:
    """Our encoder with the reference's weights."""
    spec = base_model_spec(case.base_model)
    if spec.encoder == "vit":
        return fast_vit(copy.deepcopy(plain))
    shape = spec.encoder_shape
    ours = TinyViT(shape.embed_dims, shape.depths, shape.heads, shape.windows, spec.decoder_shape.dim).eval()
    ours.load_state_dict(plain.state_dict(), strict=True)
    ours.fold_batch_norm()
    return ours.requires_grad_(False)


def adapt(plain: nn.Module, ours: nn.Module) -> None:
    """The same LoRA on q and v of all attentions of both, its factors random."""
    for name, attention in attention_modules(ours):
        linear = attention.get_submodule("qkv")
        assert isinstance(linear, nn.Linear)
        targets = {target: fused_rows(attention, linear, target) for target in "qv"}
        layer = LoRALinear.from_linear(linear, rank=RANK, alpha=RANK, targets=targets, generator=torch.Generator().manual_seed(0))
        for target in targets:
            nn.init.normal_(layer.get_parameter(f"lora_B_{target}"), std=0.02)
        ours.get_submodule(name).add_module("qkv", layer)
        plain.get_submodule(name).add_module("qkv", copy.deepcopy(layer))


def programs(case: Case, kind: str, device: torch.device) -> list[Program]:
    """The reference first."""
    plain = published(case)
    ours = ours_of(case, plain)
    if kind == "step":
        adapt(plain, ours)
    plain, ours = plain.to(device), ours.to(device)
    found = [Program("reference, float32", plain, torch.float32), Program("ours, float32", ours, torch.float32)]
    if (dtype := autocast_dtype(device)) is not None:
        found.append(Program(f"ours, {str(dtype).removeprefix('torch.')}", ours, dtype))
    return found


def images_of(case: Case, device: torch.device) -> Tensor:
    """(batch, 3, size, size), standard normal."""
    return torch.randn(case.batch, 3, case.size, case.size, generator=torch.Generator().manual_seed(1)).to(device)


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference over the norm of what is expected, of the tensor where that is largest."""
    pairs = zip(found, expected, strict=True)
    return max(float((one.float() - other.float()).norm() / other.float().norm()) for one, other in pairs)


def measure(
    case: Case, kind: str, device: torch.device, ceilings: dict[torch.dtype, Ceiling], turns: int, peaks: bool
) -> tuple[list[Row], bool]:
    """The table's lines, and whether all agree."""
    images, all_programs = images_of(case, device), programs(case, kind, device)
    with flop_counter() as counter:
        expected = all_programs[0].run(kind, images)
    agree = True
    for program in all_programs[1:]:
        error = difference(program.run(kind, images), expected)
        agree &= error < TOLERATED[program.dtype]
        print(f"{case} {kind}, {program.name}: relative difference {error:.2g} (tolerated {TOLERATED[program.dtype]:g})")

    def runner(program: Program) -> Callable[[], object]:
        return lambda: program.run(kind, images)

    seconds = in_turns({program.name: runner(program) for program in all_programs}, turns, device)
    flop = dict.fromkeys(seconds, float(counter.get_total_flops()))
    taken = None
    if peaks:
        own = ["--device", device.type, "--cases", str(case), "--kind", kind, "--peak_of"]
        taken = {program.name: peak_of("benchmarks.encoders", [*own, program.name]) for program in all_programs}
    found = rows(
        seconds,
        f"{case} {kind}",
        units=case.batch,
        flop=flop,
        peaks=taken,
        ceilings={program.name: ceilings[program.dtype] for program in all_programs},
    )
    return found, agree


def show_peak(case: Case, kind: str, name: str, device: torch.device) -> None:
    """Prints the peak bytes of one program, beyond weights and images, as the last line."""
    chosen = next(program for program in programs(case, kind, device) if program.name == name)
    images = images_of(case, device)
    if device.type == "cpu":
        print_peak(lambda: chosen.run(kind, images))
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    chosen.run(kind, images)
    print(torch.cuda.max_memory_allocated(device) - before)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="BASE_MODEL:SIZE:BATCH")
    parser.add_argument("--kind", choices=KINDS, help="only this")
    parser.add_argument("--large", action="store_true", help=f"also {LARGE}, forward")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no_peaks", action="store_true", help="leave out the memory")
    parser.add_argument("--peak_of", metavar="PROGRAM", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    torch.set_num_threads(usable_cores())
    if arguments.peak_of:
        show_peak(Case.parse(arguments.cases[0]), arguments.kind, arguments.peak_of, device)
        return 0
    keep_freed_memory()
    dtypes = {torch.float32, autocast_dtype(device) or torch.float32}
    ceilings = {dtype: measure_ceiling(device, dtype) for dtype in dtypes}
    asked = [(Case.parse(text), kind) for text in arguments.cases for kind in ([arguments.kind] if arguments.kind else KINDS)]
    if arguments.large:
        asked.append((Case.parse(LARGE), "forward"))
    table, agree = [], True
    for case, kind in asked:
        found, same = measure(case, kind, device, ceilings, arguments.turns, not arguments.no_peaks)
        table += found
        agree &= same
    for ceiling in ceilings.values():
        print(f"ceiling: {ceiling.flops / 1e9:.0f} GFLOP/s in {ceiling.dtype}, {ceiling.bytes_per_second / 1e9:.1f} GB/s copied")
    print_rows(table, "images")
    records.keep(
        RESULTS,
        {
            "device": device.type,
            "turns": arguments.turns,
            "agree": agree,
            "ceilings": [vars(ceiling) for ceiling in ceilings.values()],
            "rows": [row.to_json() for row in table],
            **records.machine(),
        },
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
