"""A cohort of many sites with next to no data each: for what a federation costs by itself. Nothing in it is medical."""

from pathlib import Path

import numpy as np

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.phantom import NODULE, ORGAN, Scanner, draw_case
from fedsam_pipeline.dataset.staging import staged_folder
from fedsam_pipeline.dataset.volume import write_image, write_labels
from fedsam_pipeline.files import write_json

SCANNER = Scanner(tissue=0.40, rim=0.72, organ=0.62, nodule=0.86, vessel=0.95, duct=0.15, gamma=1.0, noise=0.04, bias=0.1, blur_mm=0.5)
SIZE, SPACING = (8, 28, 28), (6.0, 1.9, 1.9)
"""voxels and mm, (z, y, x)"""
CASES = 2
"""a site"""


def write_cohort(folder: Path, sites: int) -> None:
    """Writes two volumes of 8 x 28 x 28 voxels a site, ``site_0000`` on.

    Args:
        folder: ``.../DatasetXXX_Name``.
        sites: how many.

    Raises:
        FedsamError: the folder exists already or cannot be written to.
    """
    members = {f"site_{site:04d}": [f"case_{site:04d}_{number}" for number in range(CASES)] for site in range(sites)}
    geometry = Geometry(size=SIZE, spacing=SPACING, origin=(0.0, 0.0, 0.0), direction=tuple(np.eye(3).ravel()))
    with staged_folder(folder, overwrite=False) as staging:
        for seed, name in enumerate(name for names in members.values() for name in names):
            image, labels = draw_case(np.random.default_rng([0, seed]), SCANNER, SIZE, SPACING)
            write_image(staging / "imagesTr" / f"{name}_0000.nii.gz", (200 * image.clip(0, 1)).astype(np.uint8), geometry)
            write_labels(staging / "labelsTr" / f"{name}.nii.gz", labels, geometry)
        write_json(
            staging / "dataset.json",
            {
                "name": "ManySites",
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "organ": ORGAN, "nodule": NODULE},
                "numTraining": CASES * sites,
                "file_ending": ".nii.gz",
                "sites": members,
            },
        )
