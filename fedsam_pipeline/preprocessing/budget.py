"""How many cases to work on at the same time: by cores, by memory, and by whether another process pays off."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import SimpleITK

from fedsam_pipeline.cores import usable_cores
from fedsam_pipeline.dataset.dicom import series_voxels, stored_files
from fedsam_pipeline.dataset.raw import RawDataset

sitk: Any = SimpleITK  # it ships without types

MAX_PROCESSES = 4
BYTES_PER_PROCESS = 64 << 20
"""starting a worker takes as long as reading about this much of compressed images"""
PROCESS_MEMORY = 400 << 20
"""of a worker before its first case, bytes: Python, torch, SimpleITK"""
VOXEL_MEMORY = 24
"""peak of a case's work for each voxel of a channel, bytes: reading, turning, cropping, normalizing and resampling hold float32 copies"""
MASK_MEMORY = 8
"""the same for each voxel of the mask"""
USABLE_SHARE = 0.8
"""of the free memory; the rest is left to the file cache and to others"""


def default_processes(dataset: RawDataset) -> int:
    """Worker processes for a dataset: one a core, at most ``MAX_PROCESSES``, as many as fit into free memory, none that would spend its
    time starting."""
    paths = [path for case in dataset.cases for path in dataset.image_paths(case)]
    worthwhile = sum(file.stat().st_size for path in paths for file in stored_files(path)) // BYTES_PER_PROCESS
    wanted = min(MAX_PROCESSES, usable_cores(), worthwhile)
    if wanted <= 1:
        return 1
    return min(wanted, processes_that_fit(largest_volume(paths), len(dataset.channel_names), free_memory()))


def case_memory(voxels: int, channels: int) -> int:
    """Memory that a worker needs for one case, bytes.

    Args:
        voxels: of one channel.
        channels: of the image.
    """
    return PROCESS_MEMORY + voxels * (channels * VOXEL_MEMORY + MASK_MEMORY)


def processes_that_fit(largest_voxels: int, channels: int, free_bytes: int) -> int:
    """Workers that can each hold the largest case within ``USABLE_SHARE`` of ``free_bytes``; at least 1."""
    return max(1, int(free_bytes * USABLE_SHARE) // case_memory(largest_voxels, channels))


def free_memory() -> int:
    """Bytes that new processes can take without swapping (psutil's ``available``)."""
    return int(psutil.virtual_memory().available)


def largest_volume(paths: Iterable[Path]) -> int:
    """Voxels of the largest image, from the headers alone. A file whose header cannot be read counts as 0: reading the case names it."""
    return max((_header_voxels(path) for path in paths), default=0)


def _header_voxels(path: Path) -> int:
    if path.is_dir():
        return series_voxels(path)
    if not path.is_file():
        return 0
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # the checks, which come next, read the whole file and say what is wrong with it
        return 0
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)
    return math.prod(reader.GetSize())
