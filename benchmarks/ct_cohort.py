"""A procedural cohort of CT size with anisotropic spacing, for benchmarks and for docs/planning.md. Nothing in it is medical.

python -m benchmarks.ct_cohort FOLDER/Dataset002_ProceduralCT [--cases 6] [--side 512] [--slices 90]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.phantom import NODULE, ORGAN, Scanner, draw_case
from fedsam_pipeline.dataset.staging import staged_folder
from fedsam_pipeline.dataset.volume import write_image, write_labels
from fedsam_pipeline.files import write_json

SCANNER = Scanner(tissue=0.50, rim=0.40, organ=0.62, nodule=0.72, vessel=0.85, duct=0.30, gamma=1.0, noise=0.02, bias=0.0, blur_mm=0.6)
DRAWN_PIXELS = 64
"""the anatomy is drawn on a plane of so many pixels and enlarged"""
DRAWN_PLANE_MM = 0.8
HOUNSFIELD = ([0.0, 0.1, 0.5, 1.0], [-1000.0, -200.0, 40.0, 300.0])
"""the phantom's intensities (0 is air) to HU, piecewise linear"""


def write_cohort(folder: Path, *, cases: int, side: int, slices: int, seed: int = 0, even_gaps: bool = True) -> None:
    """Writes labelled volumes of about ``slices`` x ``side`` x ``side`` voxels, 4 to 6 mm apart and 0.65 to 0.9 mm in plane, at two sites.

    Slices lie 4, 5 or 6 mm apart, or with ``even_gaps=False`` any distance between, so that nearly every case must be resampled along z.

    Raises:
        FedsamError: the folder exists already or cannot be written to.
    """
    names = [f"ct_{number:03d}" for number in range(cases)]
    with staged_folder(folder, overwrite=False) as staging:
        for number, name in enumerate(names):
            generator = np.random.default_rng([seed, number])
            image, labels, spacing = _draw(generator, side, slices, even_gaps)
            geometry = Geometry(size=image.shape, spacing=spacing, origin=(0.0, 0.0, 0.0), direction=tuple(np.eye(3).ravel()))
            write_image(staging / "imagesTr" / f"{name}_0000.nii.gz", image, geometry)
            write_labels(staging / "labelsTr" / f"{name}.nii.gz", labels, geometry)
        write_json(
            staging / "dataset.json",
            {
                "name": "ProceduralCT",
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "organ": ORGAN, "nodule": NODULE},
                "numTraining": cases,
                "file_ending": ".nii.gz",
                "sites": {"site_a": names[: cases // 2], "site_b": names[cases // 2 :]} if cases > 1 else {"site_a": names},
            },
        )


def _draw(
    generator: np.random.Generator, side: int, slices: int, even_gaps: bool
) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, float, float]]:
    """HU (Z, Y, X), labels of the same shape, spacing (z, y, x) in mm."""
    count = slices + int(generator.integers(-slices // 10, slices // 10 + 1))
    plane = round(float(generator.uniform(0.65, 0.9)), 3)
    gap = float(generator.choice([4.0, 5.0, 5.0, 6.0])) if even_gaps else round(float(generator.uniform(4, 6)), 2)
    drawn_gap = 40.0 / count  # the drawn anatomy is about 40 mm long
    image, labels = draw_case(generator, SCANNER, (count, DRAWN_PIXELS, DRAWN_PIXELS), (drawn_gap, DRAWN_PLANE_MM, DRAWN_PLANE_MM))
    enlarged = functional.interpolate(torch.from_numpy(image)[:, None].float(), size=(side, side), mode="bilinear")[:, 0].numpy()
    nearest = functional.interpolate(torch.from_numpy(labels)[:, None].float(), size=(side, side), mode="nearest")[:, 0].numpy()
    hounsfield = np.interp(enlarged, *HOUNSFIELD) + generator.normal(scale=12, size=enlarged.shape).astype(np.float32)
    return np.round(hounsfield).astype(np.int16), nearest.astype(np.uint8), (gap, plane, plane)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--slices", type=int, default=90)
    arguments = parser.parse_args()
    write_cohort(arguments.folder, cases=arguments.cases, side=arguments.side, slices=arguments.slices)
    print(f"{arguments.cases} cases: {arguments.folder}")


if __name__ == "__main__":
    main()
