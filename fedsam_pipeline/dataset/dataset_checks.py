"""Checks that compare the cases of a dataset with each other. All of them warn: whether it matters is for a person to say."""

from collections import defaultdict
from collections.abc import Sequence

from fedsam_pipeline.dataset.findings import Check, Finding, Severity
from fedsam_pipeline.dataset.integrity import CaseRecord
from fedsam_pipeline.dataset.raw import RawDataset
from fedsam_pipeline.dataset.raw_checks import some


def shared_patients(dataset: RawDataset) -> list[Finding]:
    """Patients with cases in ``imagesTr`` and in ``imagesTs``; reads no file. A case that ``patients`` does not name is its own patient."""
    training: dict[str, list[str]] = defaultdict(list)
    test: dict[str, list[str]] = defaultdict(list)
    for where, cases in ((training, dataset.cases), (test, dataset.test_cases)):
        for case in cases:
            where[dataset.patients.get(case, case)].append(case)
    return [
        Finding(
            Severity.WARNING,
            Check.PATIENTS,
            training[patient][0],
            dataset.site_of(training[patient][0]),
            "a patient has cases in both imagesTr and imagesTs",
            path=str(dataset.folder / "dataset.json"),
            found=f"{patient}: {', '.join(training[patient])} in imagesTr, {', '.join(test[patient])} in imagesTs",
            expected="test cases of patients that no model saw in training",
            fix="move all cases of the patient to one of the two",
        )
        for patient in sorted(training.keys() & test.keys())
    ]


def repeated_images(dataset: RawDataset, records: Sequence[CaseRecord]) -> list[Finding]:
    """Images, or single channels, with the same voxels under several names, in whatever orientation they are stored."""
    places: dict[str, list[tuple[CaseRecord, int]]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (record.test, record.case)):
        for channel, digest in enumerate(record.hashes):
            if digest is not None:
                places[digest].append((record, channel))
    together: dict[tuple[tuple[str, bool], ...], set[int]] = defaultdict(set)
    findings = []
    for same in places.values():
        cases = tuple(dict.fromkeys((record.case, record.test) for record, _ in same))
        if len(cases) > 1:
            together[cases] |= {channel for _, channel in same}
        elif len(same) > 1:
            findings.append(_equal_channels(dataset, same[0][0], [channel for _, channel in same]))
    of_case = {(record.case, record.test): record for record in records}
    findings += [_repeated(dataset, [of_case[case] for case in cases], sorted(channels)) for cases, channels in sorted(together.items())]
    return findings


def absent_classes(dataset: RawDataset, records: Sequence[CaseRecord]) -> list[Finding]:
    """Classes that no mask holds, of the dataset or of a site that is said to have annotated them. Unusable masks decide nothing."""
    masks: dict[str, list[tuple[int, ...] | None]] = defaultdict(list)
    for record in records:
        if not record.test:
            masks[record.site].append(record.values)
    findings = []
    for name, value in dataset.labels.items():
        sites = [
            site
            for site in sorted(masks)
            if value and (site not in dataset.site_labels or value in dataset.label_scheme.values_of(dataset.site_labels[site]))
        ]
        lacking = [site for site in sites if all(values is not None and value not in values for values in masks[site])]
        if lacking and lacking == sites:
            findings.append(_absent(dataset, None, f"no mask holds the class {name}", f"label value {value} nowhere"))
        else:
            findings += [
                _absent(
                    dataset, site, f"no mask of {site} holds the class {name}", f"label value {value} in none of {len(masks[site])} masks"
                )
                for site in lacking
            ]
    return findings


def _absent(dataset: RawDataset, site: str | None, what: str, found: str) -> Finding:
    where = "remove the class from labels" if site is None else f"if {site} did not annotate it, say so in site_labels of dataset.json"
    return Finding(
        Severity.WARNING,
        Check.CLASSES,
        None,
        site,
        what,
        path=str(dataset.folder / "dataset.json"),
        found=found,
        expected="every class in some mask of each site that annotated it",
        fix=f"{where}; if its values differ, map them in site.toml; if the patients have none of it, leave it as it is",
    )


def _equal_channels(dataset: RawDataset, record: CaseRecord, channels: list[int]) -> Finding:
    return Finding(
        Severity.WARNING,
        Check.DUPLICATE,
        record.case,
        record.site,
        "channels of one image are the same",
        path=_path(dataset, record, channels[1]),
        found=f"the same voxels in {', '.join(dataset.channel_names[channel] for channel in channels)}",
        expected="a different image in each channel",
        fix="export the right one, unless it stands for a missing one",
    )


def _repeated(dataset: RawDataset, records: list[CaseRecord], channels: list[int]) -> Finding:
    both = len({record.test for record in records}) == 2
    some_channels = len(channels) < len(dataset.channel_names)
    names = ", ".join(dataset.channel_names[channel] for channel in channels)
    what = "an image stands in both imagesTr and imagesTs" if both else "an image stands under several case names"
    return Finding(
        Severity.WARNING,
        Check.DUPLICATE,
        records[0].case,
        records[0].site,
        f"{what} (channel {names})" if some_channels else what,
        path=_path(dataset, records[0], channels[0]),
        found=some(f"{record.case} (imagesTs)" if record.test else f"{record.case} ({record.site})" for record in records),
        expected="each image once",
        fix="remove it from one of the two: the test would not be one"
        if both
        else 'keep one of them; where both are meant, give them one name in "patients" of dataset.json, so that no fold separates them',
    )


def _path(dataset: RawDataset, record: CaseRecord, channel: int) -> str:
    paths = dataset.test_image_paths(record.case) if record.test else dataset.image_paths(record.case)
    return str(paths[channel])
