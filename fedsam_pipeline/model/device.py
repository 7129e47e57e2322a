"""Which device computes, and whether it has bfloat16 units."""

import torch

from fedsam_pipeline.errors import FedsamError


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        FedsamError: the device does not exist on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise FedsamError("there is no CUDA device here", found="no GPU that torch can use", fix="use -device cpu")
    if name not in ("cpu", "cuda"):
        raise FedsamError("unknown device", found=name, expected="auto, cpu or cuda")
    return torch.device(name)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """``bfloat16`` where the hardware has units for it, else ``None`` (float32 throughout).

    On CPUs without such units bfloat16 is emulated and slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    return torch.bfloat16 if native else None
