"""A tiny raw dataset that tests then break."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fedsam_pipeline.dataset.volume import Geometry, write_image, write_labels

GRID = Geometry((3, 4, 5), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
CASES = ("a1", "a2", "b1")
CONTENT: dict[str, Any] = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "organ": 1, "nodule": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
    "sites": {"b": ["b1"], "a": ["a2", "a1"]},
    "test_sites": {"a": ["t1"]},
}


def make_raw(root: Path, **changes: Any) -> Path:
    """Two sites, three labelled cases with two channels, one test case. ``changes`` replace keys of dataset.json, ``None`` removes one."""
    folder = root / "Dataset007_Tiny"
    ending = CONTENT["file_ending"]
    for number, case in enumerate(CASES):
        for channel in (0, 1):
            write_image(
                folder / "imagesTr" / f"{case}_{channel:04d}{ending}", np.full(GRID.size, 10.0 * number + channel, np.float32), GRID
            )
        labels = np.zeros(GRID.size, np.uint8)
        labels[0, 0, :3] = (0, 1, 2)
        write_labels(folder / "labelsTr" / f"{case}{ending}", labels, GRID)
    for channel in (0, 1):
        write_image(folder / "imagesTs" / f"t1_{channel:04d}{ending}", np.zeros(GRID.size, np.float32), GRID)
    write_content(folder, **changes)
    return folder


def write_content(folder: Path, **changes: Any) -> None:
    """Writes dataset.json anew."""
    content = {key: value for key, value in (CONTENT | changes).items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(content))


def skew(path: Path, slope: float) -> None:
    """Shears the sform of a ``.nii.gz`` file on ``GRID``: x grows by ``slope`` mm for each mm of y."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    assert struct.unpack_from("<h", content, 254)[0] > 0
    struct.pack_into("<f", content, 284, slope * struct.unpack_from("<f", content, 284 + 16)[0])
    path.write_bytes(gzip.compress(bytes(content)))


def textured(seed: int) -> Any:
    """An image on ``GRID`` that differs from every other seed's, (Z, Y, X) float32."""
    return np.random.default_rng(seed).normal(size=GRID.size).astype(np.float32)


def make_textured(root: Path, **changes: Any) -> Path:
    """As ``make_raw``, with images that are neither constant nor alike: the full report finds nothing."""
    folder = make_raw(root, **changes)
    files = sorted([*(folder / "imagesTr").iterdir(), *(folder / "imagesTs").iterdir()])
    for number, path in enumerate(files):
        write_image(path, textured(number), GRID)
    return folder
