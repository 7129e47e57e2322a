"""The raw dataset on disk: nnU-Net v2's layout, with optional keys that say which site owns which case.

``DatasetXXX_Name/{dataset.json, imagesTr, labelsTr, imagesTs, labelsTs}``, images as ``CASE_0000.nii.gz`` with one file a channel, masks as
``CASE.nii.gz`` (Isensee et al., nnU-Net, Nature Methods 2021, and its dataset_format.md). Our keys, all optional: ``sites``,
``test_sites``, ``site_labels``, ``patients``. Unknown keys are left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedsam_pipeline.dataset.label_scheme import LabelScheme, read_label_scheme
from fedsam_pipeline.dataset.raw_checks import (
    assign_sites,
    channel_path,
    check_files,
    complain,
    find_test_cases,
    find_training_cases,
    raise_file_faults,
    read_channel_names,
    read_explicit_cases,
    read_file_ending,
    read_patients,
    read_site_labels,
    refuse_clashes,
    require_keys,
)
from fedsam_pipeline.dataset.site_mapping import FILE_NAME, SiteMapping, identity, read_site_mapping
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json
from fedsam_pipeline.paths import dataset_id

ONLY_SITE = "site_0"
"""the name of the one site of a dataset without ``sites``"""


@dataclass(frozen=True)
class CaseFiles:
    """The files of one labelled case that ``dataset.json`` lists explicitly."""

    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset whose ``dataset.json`` and file names have been checked; no pixel has been read.

    Args:
        folder: ``.../DatasetXXX_Name``.
        name: the folder's name.
        channel_names: by channel number.
        labels: class name to value; ``background`` is 0, the others follow without a gap. With regions, a class is a single value.
        file_ending: of images and masks, such as ``.nii.gz``.
        sites: site to its labelled cases, both sorted.
        test_sites: site to its cases in ``imagesTs``, both sorted.
        patients: case to patient, for cases that share one.
        site_labels: site to the foreground classes it annotated; sites that are not named annotated all.
        explicit_files: case to its files where ``dataset.json`` has a ``dataset`` map.
        ignore_label: the value of voxels that nobody annotated, one above the last class; ``None`` without.
        regions: region to the label values that it unites; empty where every label is a single value.
        site_mapping: what ``site.toml`` says; ``None`` without one. Paths come in the order of ``channel_names`` whatever the files' own.
    """

    folder: Path
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    sites: dict[str, tuple[str, ...]]
    test_sites: dict[str, tuple[str, ...]]
    patients: dict[str, str]
    site_labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    explicit_files: Mapping[str, CaseFiles] = field(default_factory=dict)
    ignore_label: int | None = None
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    site_mapping: SiteMapping | None = None

    @property
    def mapping(self) -> SiteMapping:
        """From the site's label values and channel order to the federation's."""
        return self.site_mapping or identity(len(self.channel_names))

    @property
    def label_scheme(self) -> LabelScheme:
        """What the values of a mask mean."""
        return LabelScheme(self.labels, self.ignore_label, self.regions)

    @property
    def cases(self) -> tuple[str, ...]:
        """All labelled cases, sorted."""
        return tuple(sorted(case for cases in self.sites.values() for case in cases))

    @property
    def test_cases(self) -> tuple[str, ...]:
        """All cases of ``imagesTs``, sorted."""
        return tuple(sorted(case for cases in self.test_sites.values() for case in cases))

    def site_of(self, case: str) -> str:
        """The site that owns a labelled case; ``KeyError`` for any other."""
        for site, cases in self.sites.items():
            if case in cases:
                return site
        raise KeyError(case)

    def image_paths(self, case: str) -> list[Path]:
        """One file a channel, of a labelled case."""
        if case in self.explicit_files:
            return [self.explicit_files[case].images[number] for number in self.mapping.channel_files]
        return self._channel_paths(self.folder / "imagesTr", case)

    def label_path(self, case: str) -> Path:
        """The mask of a labelled case."""
        if case in self.explicit_files:
            return self.explicit_files[case].label
        return self.folder / "labelsTr" / f"{case}{self.file_ending}"

    def test_image_paths(self, case: str) -> list[Path]:
        """One file a channel, of a case in ``imagesTs``."""
        return self._channel_paths(self.folder / "imagesTs", case)

    def _channel_paths(self, folder: Path, case: str) -> list[Path]:
        return [channel_path(folder, f"{case}_{number:04d}", self.file_ending) for number in self.mapping.channel_files]


def load_raw_dataset(folder: Path) -> RawDataset:
    """Reads ``dataset.json`` and checks it against the files that are there.

    Raises:
        FedsamError: the folder or ``dataset.json`` is missing or invalid; a case is in two sites, in none, or without its files; a site is
            empty; and so on. Every error lists all cases that have the fault (the first five by name).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FedsamError(
            "the raw dataset is missing",
            path=folder,
            expected="a DatasetXXX_Name folder with dataset.json, imagesTr and labelsTr",
            fix="check the path, or make the demo dataset: fedsam_make_demo_dataset",
        )
    dataset_id(folder.resolve().name)
    path = folder / "dataset.json"
    content = read_json(path, fix="write dataset.json as docs/formats.md shows")
    if not isinstance(content, dict):
        raise complain(path, "dataset.json is not a JSON object", found=type(content).__name__, expected='{"channel_names": ...}')
    require_keys(content, path)
    channel_names = read_channel_names(content, path)
    scheme = read_label_scheme(content, path)
    ending = read_file_ending(content, path)
    mapping = read_site_mapping(folder, scheme, channel_names)
    explicit = read_explicit_cases(content, path, folder)
    if explicit is None:
        cases, faults = find_training_cases(folder, ending, mapping.num_files)
        files: dict[str, CaseFiles] = {}
    else:
        faults = check_files(explicit, path, mapping.num_files)
        files = {case: CaseFiles(images, label) for case, (images, label) in explicit.items()}
        cases = sorted(explicit)
    test_cases, test_faults = find_test_cases(folder, ending, mapping.num_files)
    raise_file_faults([*faults, *test_faults], folder)
    refuse_clashes(cases, path)
    sites = assign_sites(content, "sites", cases, path, default=mapping.site or ONLY_SITE)
    if mapping.site is not None and set(sites) != {mapping.site}:
        raise complain(
            folder / FILE_NAME,
            f"{FILE_NAME} and dataset.json name different sites",
            found=f"{mapping.site} against {', '.join(sites)}",
            expected=f"{FILE_NAME} in the folder of one site",
            fix="remove sites from dataset.json, or correct the name",
        )
    test_sites = assign_sites(content, "test_sites", test_cases, path, default=next(iter(sites)) if len(sites) == 1 else "test")
    return RawDataset(
        folder=folder,
        name=folder.resolve().name,
        channel_names=channel_names,
        labels=scheme.classes,
        file_ending=ending,
        sites=sites,
        test_sites=test_sites,
        patients=read_patients(content, path, {*cases, *test_cases}),
        site_labels=read_site_labels(content, path, {*sites, *test_sites}, scheme),
        explicit_files=files,
        ignore_label=scheme.ignore,
        regions=scheme.regions,
        site_mapping=mapping if (folder / FILE_NAME).exists() else None,
    )
