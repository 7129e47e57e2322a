"""The demo cohort: hospitals that share an anatomy and differ in everything else.

The sites differ in contrast (two show vessels bright and ducts dark, two the other way round), noise, brightness drift, field of view,
voxel size, orientation of the stored axes, stored number type and scale, and number of cases. The last site has very few, and noisy ones:
alone it cannot learn the variety of shapes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from tqdm import tqdm

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.image_files import geometry_of
from fedsam_pipeline.dataset.phantom import NODULE, ORGAN, Scanner, draw_case
from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.staging import staged_folder
from fedsam_pipeline.dataset.volume import write_image, write_labels
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.paths import dataset_id

sitk: Any = SimpleITK  # it ships without types

GENERATOR_VERSION = 2
"""raised whenever the same seed gives other voxels"""
FILE_ENDING = ".nii.gz"


@dataclass(frozen=True)
class DemoSite:
    """One hospital of the cohort.

    Args:
        name: the site's name.
        labelled: cases in imagesTr.
        test: cases in imagesTs.
        size: typical grid, voxels (z, y, x); cases vary by a few voxels.
        spacing: voxel size, mm (z, y, x).
        orientation: how the axes (x, y, z) are stored, a DICOM code.
        tilt_degrees: how far the scan is rotated out of the patient's axes.
        dtype: stored number type.
        scale, offset: stored value = intensity * scale + offset.
        scanner: the look of the images.
    """

    name: str
    labelled: int
    test: int
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    tilt_degrees: float
    dtype: type[np.generic]
    scale: float
    offset: float
    scanner: Scanner


BRIGHT = Scanner(tissue=0.40, rim=0.72, organ=0.62, nodule=0.86, vessel=0.95, duct=0.15, gamma=1.0, noise=0.040, bias=0.10, blur_mm=0.5)
FADED = Scanner(tissue=0.45, rim=0.80, organ=0.62, nodule=0.80, vessel=0.85, duct=0.30, gamma=1.8, noise=0.035, bias=0.30, blur_mm=0.8)
SWAPPED = Scanner(tissue=0.50, rim=0.45, organ=0.68, nodule=0.90, vessel=0.15, duct=0.95, gamma=1.0, noise=0.045, bias=0.15, blur_mm=0.6)
NOISY = Scanner(tissue=0.48, rim=0.55, organ=0.66, nodule=0.88, vessel=0.20, duct=0.92, gamma=1.1, noise=0.060, bias=0.20, blur_mm=0.7)

DEMO_SITES = (
    DemoSite("site_a", 10, 4, (20, 52, 52), (3.0, 1.0, 1.0), "LPS", 0.0, np.uint8, 200.0, 0.0, BRIGHT),
    DemoSite("site_b", 8, 4, (24, 48, 48), (2.5, 1.1, 1.1), "RAS", 0.0, np.float32, 1.0, 0.0, FADED),
    DemoSite("site_c", 6, 4, (18, 54, 54), (3.5, 0.9, 0.9), "LSA", 0.0, np.int16, 2400.0, 0.0, SWAPPED),
    DemoSite("site_d", 3, 5, (20, 46, 50), (3.0, 1.0, 1.0), "LPI", 9.0, np.uint16, 30000.0, 0.0, NOISY),
)
TINY_SITES = (
    DemoSite("site_a", 5, 1, (8, 28, 28), (6.0, 1.9, 1.9), "LPS", 0.0, np.uint8, 200.0, 0.0, BRIGHT),
    DemoSite("site_b", 2, 1, (7, 26, 30), (6.5, 1.8, 1.8), "RAS", 0.0, np.float32, 1.0, 0.0, FADED),
    DemoSite("site_c", 2, 1, (7, 26, 26), (6.0, 2.0, 2.0), "LSA", 9.0, np.int16, 2400.0, 0.0, SWAPPED),
)


def make_demo_dataset(
    folder: Path, *, seed: int = 0, size: Literal["demo", "tiny"] = "demo", overwrite: bool = False, progress: bool = False
) -> RawDataset:
    """Writes the demo cohort, or leaves it as it is where the same one is there already.

    Args:
        folder: ``.../DatasetXXX_Name``; appears complete or not at all.
        seed: another seed gives other patients.
        size: ``"demo"`` (27 labelled cases of about 20 x 50 x 50 voxels at four sites) or ``"tiny"`` (9 cases of about 7 x 27 x 27 at
            three, for tests).
        overwrite: replace another dataset in ``folder``.
        progress: show a progress bar on a terminal.

    Raises:
        FedsamError: the folder holds something else and ``overwrite`` is false, its name is unusual, or it cannot be written to.
    """
    folder = Path(folder)
    dataset_id(folder.name)
    recipe = {"generator_version": GENERATOR_VERSION, "seed": seed, "size": size}
    if folder.exists() and not overwrite:
        existing = folder / "dataset.json"
        found = read_json(existing).get("demo_cohort") if existing.is_file() else None
        if found != recipe:
            raise FedsamError(
                "the folder holds another dataset",
                path=folder,
                found=f"demo cohort {found}" if found else "a folder that is no demo cohort",
                expected=f"nothing, or the demo cohort {recipe}",
                fix="add --overwrite to replace it, or choose another number with -d",
            )
        return load_raw_dataset(folder)
    with staged_folder(folder, overwrite=overwrite) as staging:
        _write_cohort(staging, DEMO_SITES if size == "demo" else TINY_SITES, seed, recipe, progress)
    return load_raw_dataset(folder)


def _write_cohort(folder: Path, sites: tuple[DemoSite, ...], seed: int, recipe: dict[str, Any], progress: bool) -> None:
    training: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    jobs: list[tuple[str, str, int, int]] = []
    for site_number, site in enumerate(sites):
        names = [f"demo_{site.name[-1]}{number:02d}" for number in range(site.labelled + site.test)]
        training[site.name], test[site.name] = names[: site.labelled], names[site.labelled :]
        jobs += [(name, "Tr" if number < site.labelled else "Ts", site_number, number) for number, name in enumerate(names)]
    for name, part, site_number, number in tqdm(jobs, desc="demo cohort", unit="case", disable=None if progress else True):
        image, labels, geometry = _draw_stored(sites[site_number], np.random.default_rng([seed, site_number, number]))
        write_image(folder / f"images{part}" / f"{name}_0000{FILE_ENDING}", image, geometry)
        write_labels(folder / f"labels{part}" / f"{name}{FILE_ENDING}", labels, geometry)
    write_json(
        folder / "dataset.json",
        {
            "name": "Demo",
            "description": "procedural multi-site cohort; no patient data",
            "licence": "CC0-1.0",
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "organ": ORGAN, "nodule": NODULE},
            "numTraining": sum(len(cases) for cases in training.values()),
            "file_ending": FILE_ENDING,
            "sites": training,
            "test_sites": test,
            "demo_cohort": recipe,
        },
    )


def _draw_stored(site: DemoSite, generator: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any], Geometry]:
    """One case as the site stores it: image and mask (Z, Y, X) in the site's axis order, and their grid."""
    rows, columns = (extent + int(generator.integers(-2, 3)) for extent in site.size[1:])
    size = (site.size[0] + int(generator.integers(-1, 2)), rows, columns)
    intensities, labels = draw_case(generator, site.scanner, size, site.spacing)
    intensities = intensities * generator.uniform(0.9, 1.1) * site.scale + site.offset
    if np.issubdtype(site.dtype, np.integer):
        limits = np.iinfo(site.dtype)  # type: ignore[type-var]
        intensities = np.clip(np.round(intensities), limits.min, limits.max)
    origin = tuple(float(value) for value in generator.uniform(-120, 120, size=3).round(2))
    stored_image, geometry = _as_stored(intensities.astype(site.dtype), site, origin)
    stored_labels, _ = _as_stored(labels, site, origin)
    return stored_image, stored_labels, geometry


def _as_stored(array: NDArray[Any], site: DemoSite, origin: tuple[float, ...]) -> tuple[NDArray[Any], Geometry]:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(site.spacing[::-1])
    image.SetOrigin(origin)
    angle = np.deg2rad(site.tilt_degrees)
    image.SetDirection([1, 0, 0, 0, float(np.cos(angle)), float(-np.sin(angle)), 0, float(np.sin(angle)), float(np.cos(angle))])
    image = sitk.DICOMOrient(image, site.orientation)
    return sitk.GetArrayFromImage(image), geometry_of(image)
