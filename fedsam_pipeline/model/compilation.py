"""``torch.compile`` for the blocks of an image encoder: machine-dependent, optional, and part of no plan, recipe or hash."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.recompute import encoder_blocks
from fedsam_pipeline.model.sam import PromptFreeSam

BACKEND = "inductor"
VARIANTS = 64
"""How many variants of the blocks' code are compiled: stages of several sizes, with and without gradients, in training and prediction. All
blocks of all models of a process are one code; beyond torch's own limit of 8 variants they would run as written."""


def compile_encoder(model: PromptFreeSam, device: torch.device) -> None:
    """Has every block of the image encoder compiled when it is first called. Names of parameters and modules stay; twice is once.

    Args:
        model: with all that is put into it; its weights may change later.
        device: where it computes.

    Raises:
        FedsamError: torch cannot compile here: on CPUs it needs a C++ compiler.
    """
    blocks = [block for block in encoder_blocks(model.image_encoder) if block._compiled_call_impl is None]
    if not blocks:
        return
    try:
        torch.compile(torch.neg, backend=BACKEND)(torch.zeros(8, device=device))
    except RuntimeError as error:  # of dynamo, of the backend, of the compiler
        raise FedsamError(
            "torch cannot compile on this machine",
            found=str(error).strip().splitlines()[0],
            expected="a working C++ compiler, such as g++" if device.type == "cpu" else "Triton and a GPU that it supports",
            fix="install it, or leave --compile out: results are the same but for rounding",
        ) from error
    for block in blocks:
        # dynamic: the backend fails on some blocks whose sizes it takes for variables
        block.compile(backend=BACKEND, dynamic=False, recompile_limit=VARIANTS)


def is_compiled(model: PromptFreeSam) -> bool:
    """Whether blocks of the image encoder are."""
    return any(block._compiled_call_impl is not None for block in encoder_blocks(model.image_encoder))


@contextmanager
def uncompiled(model: object) -> Iterator[None]:
    """Computes without compiled blocks for a while: hooks then see every module. What is no ``nn.Module`` has none."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    compiled = [(module, module._compiled_call_impl) for module in modules if module._compiled_call_impl is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
