"""Which device computes, whether it has bfloat16 units, and what else of a GPU is used."""

import torch

from fedsam_pipeline.errors import FedsamError


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        FedsamError: the device does not exist on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise FedsamError("there is no CUDA device here", found="no GPU that torch can use", fix="use -device cpu")
    if name not in ("cpu", "cuda"):
        raise FedsamError("unknown device", found=name, expected="auto, cpu or cuda")
    chosen = torch.device(name)
    allow_tf32(chosen)
    return chosen


def allow_tf32(device: torch.device) -> None:
    """On a GPU, lets this process multiply float32 matrices and convolve with TF32 units: products of 10-bit mantissas, summed in float32.

    What autocast leaves in float32 then takes them as well; they are more exact than bfloat16. A worker process that was handed a device
    calls this itself. Nothing changes on a CPU.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """``bfloat16`` where the hardware has units for it, else ``None`` (float32 throughout).

    On CPUs without such units bfloat16 is emulated and slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    return torch.bfloat16 if native else None
