"""What the values of a mask mean: classes, nnU-Net v2's region labels, its ignore label, and which classes a site annotated.

Formats: nnU-Net's documentation/dataset_format.md, region_based_training.md and ignore_label.md. Unlike nnU-Net, which trains one sigmoid a
region, we train a softmax over the single values: a voxel has one value, so every value is a class of its own, and a region is a set of
classes that evaluation counts together.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.errors import FedsamError

IGNORE = -1
"""what the dataset's ignore value becomes once a mask is read: below every class, so that ``labels > 0`` is foreground everywhere"""
BACKGROUND_NAME, IGNORE_NAME = "background", "ignore"
MEND = "mend dataset.json (docs/formats.md shows one)"


@dataclass(frozen=True)
class LabelScheme:
    """The labels of a dataset.

    Attributes:
        classes: name to value, ordered by value: background 0, then 1, 2, ... without a gap. With regions, names made of theirs.
        ignore: the value of voxels that nobody annotated, one above the last class; ``None`` where every voxel has a class.
        regions: name to the values that it unites, largest region first; empty where every label is a single value.
    """

    classes: dict[str, int]
    ignore: int | None = None
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def scored(self) -> dict[str, tuple[int, ...]]:
        """What Dice is reported of: the regions, or the foreground classes."""
        return self.regions or {name: (value,) for name, value in self.classes.items() if value}

    @property
    def annotatable(self) -> tuple[str, ...]:
        """Names that ``site_labels`` may hold beside background: foreground classes and regions, sorted."""
        return tuple(sorted((self.classes.keys() | self.regions.keys()) - {BACKGROUND_NAME}))

    def values_of(self, names: Iterable[str]) -> tuple[int, ...]:
        """The foreground values of classes and regions, sorted; ``KeyError`` for an unknown name."""
        values = {value for name in names for value in (self.regions[name] if name in self.regions else (self.classes[name],))}
        return tuple(sorted(values - {0}))

    def annotated(self, site_labels: Mapping[str, Iterable[str]]) -> dict[str, tuple[int, ...]]:
        """Site to the foreground values it annotated, of those sites that did not annotate all."""
        everything = self.values_of(self.annotatable)
        of_site = {site: self.values_of(names) for site, names in site_labels.items()}
        return {site: values for site, values in sorted(of_site.items()) if values != everything}

    def scorable(self, annotated: Collection[int]) -> NDArray[np.bool_]:
        """For each of ``scored``, whether a site that annotated these foreground values knows all of it: part of a region says nothing."""
        return np.array([set(values) <= set(annotated) for values in self.scored.values()])


def mark_ignored(labels: NDArray[Any], ignore: int | None) -> NDArray[Any]:
    """A mask as read, with ``IGNORE`` in place of the dataset's ignore value; the same array where the dataset has none."""
    return labels if ignore is None else np.where(labels == ignore, labels.dtype.type(IGNORE), labels)


def read_label_scheme(content: Mapping[str, Any], path: Path) -> LabelScheme:
    """The keys ``labels`` and ``regions_class_order`` of a ``dataset.json``.

    Args:
        content: the file's content; must hold ``labels``.
        path: the file, for errors.

    Raises:
        FedsamError: values that are no whole numbers or leave gaps, a background other than 0, no foreground, an ignore label that is not
            the highest value, or regions without a fitting ``regions_class_order``.
    """
    value = content["labels"]
    if not isinstance(value, dict) or not value:
        raise FedsamError("labels is not usable", path=path, found=value, expected='such as {"background": 0, "liver": 1}', fix=MEND)
    sets = {name: _values(entry) for name, entry in value.items()}
    ignored, background = sets.pop(IGNORE_NAME, None), sets.pop(BACKGROUND_NAME, ())
    numbers = sorted(number for values in sets.values() for number in values)
    regions = {name: values for name, values in sets.items() if any(len(other) > 1 for other in sets.values())}
    if regions:
        numbers = sorted(set(numbers))
    if ignored is not None and (len(ignored) != 1 or ignored[0] != max(numbers, default=0) + 1):
        raise FedsamError(
            "the ignore label is not the highest value",
            path=path,
            found=f'"{IGNORE_NAME}": {value[IGNORE_NAME]}',
            expected=f"{max(numbers, default=0) + 1}, one above the last class, as in nnU-Net v2",
            fix="renumber it in dataset.json and in the masks",
        )
    if background != (0,) or not all(sets.values()) or numbers != list(range(1, len(numbers) + 1)) or not numbers:
        raise FedsamError(
            "labels are not numbered as expected",
            path=path,
            found=value,
            expected='"background": 0, then the classes as 1, 2, 3, ... without a gap, at least one; a region is a list of these',
            fix="renumber the classes in dataset.json and in the masks; name comes first, as in nnU-Net v2",
        )
    if regions:
        _check_class_order(content, regions, path)
        classes = _class_names(regions, path)
    else:
        classes = {name: values[0] for name, values in sorted(sets.items(), key=lambda item: item[1])}
    largest_first = sorted(regions.items(), key=lambda item: (-len(item[1]), item[1], item[0]))
    return LabelScheme({BACKGROUND_NAME: 0} | classes, None if ignored is None else ignored[0], dict(largest_first))


def _values(entry: object) -> tuple[int, ...]:
    """The values of one label, sorted and each once; none where the entry is neither whole number nor list of them."""
    numbers = entry if isinstance(entry, list | tuple) else [entry]
    whole = [number for number in numbers if isinstance(number, int) and not isinstance(number, bool)]
    return tuple(sorted(set(whole))) if len(whole) == len(numbers) else ()


def _check_class_order(content: Mapping[str, Any], regions: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """nnU-Net paints its regions in this order; we only ask that it could."""
    order = content.get("regions_class_order")
    known = {number for values in regions.values() for number in values}
    if not isinstance(order, list) or len(order) != len(regions) or not all(_values([number]) and number in known for number in order):
        raise FedsamError(
            "regions need regions_class_order",
            path=path,
            found=order,
            expected=f"{len(regions)} label values, one a region in the order of labels: {', '.join(regions)}",
            fix='add it, such as "regions_class_order": [1, 2, 3], as in nnU-Net v2',
        )


def _class_names(regions: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, int]:
    """A name for every value: the region that is this value alone, else the smallest region that holds it and the value.

    Equally small regions go by name, so that the order of labels in the file does not matter.
    """
    classes: dict[str, int] = {}
    for value in sorted({value for values in regions.values() for value in values}):
        size, smallest = min((len(values), name) for name, values in regions.items() if value in values)
        name = smallest if size == 1 else f"{smallest}_{value}"
        if name in classes or regions.get(name, (value,)) != (value,):
            raise FedsamError(
                "the names of regions collide with the names made for single values",
                path=path,
                found=f"{name}, for the value {value}",
                expected="no region named like another with a number behind it",
                fix=f"rename the region {name}",
            )
        classes[name] = value
    return classes
