"""What a result was computed with: versions and hardware, for ``run.json``."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.model.device import autocast_dtype, choose_device

PACKAGES = ("fedsam-pipeline", "torch", "flwr", "segment-anything", "SimpleITK", "batchgenerators", "numpy", "scipy", "blosc2")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide results."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def hardware(device: str) -> dict[str, Any]:
    """Processor, cores, device, and whether bfloat16 is used."""
    chosen = choose_device(device)
    capabilities = torch.cpu.get_capabilities()
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": str(capabilities.get("cpu_name", platform.processor())),
        "cores": usable_cores(),
        "device": torch.cuda.get_device_name(0) if chosen.type == "cuda" else "cpu",
        "bfloat16": autocast_dtype(chosen) is not None,
    }
