"""``site.toml``: how one site's own label values and channel order become the federation's.

``dataset.json`` is the federation's, the same at every site. A site whose masks are numbered otherwise, or whose channels stand in another
order, says so here instead of rewriting its files. ``RawDataset`` hands out paths in the federation's channel order and ``apply`` turns
masks into the federation's values, so that nothing after reading knows the difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.label_scheme import BACKGROUND_NAME, IGNORE_NAME, LabelScheme
from fedsam_pipeline.dataset.raw_checks import is_safe_name
from fedsam_pipeline.dataset.volume import Volume, read_labels
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_toml

FILE_NAME = "site.toml"
UNUSED = "-"
"""stands in ``channels.order`` for a file that the federation has no channel for"""
_SHAPES = {"site": str, "labels": dict, "own_labels": dict, "channels": dict}
_FIX = f"mend {FILE_NAME} (docs/formats.md shows one)"


@dataclass(frozen=True)
class SiteMapping:
    """What ``site.toml`` says, resolved against ``dataset.json``.

    Args:
        site: the name of the site, or ``None``.
        values: value in the site's masks to the federation's, 0 included; empty where the values are the federation's already.
        channel_files: for each of the federation's channels, the number of its file (``_0000`` is 0).
        num_files: channel files that each case has.
    """

    site: str | None
    values: Mapping[int, int]
    channel_files: tuple[int, ...]
    num_files: int

    def apply(self, labels: NDArray[np.int16], path: Path) -> NDArray[np.int16]:
        """A mask (Z, Y, X) in the federation's values.

        Args:
            labels: in the site's values.
            path: the mask's file, for the error.

        Raises:
            FedsamError: a value that ``site.toml`` does not map.
        """
        if not self.values:
            return labels
        present = np.unique(labels)
        unknown = [int(value) for value in present if int(value) not in self.values]
        if unknown:
            raise FedsamError(
                f"a mask holds values that {FILE_NAME} does not map",
                path=path,
                found=f"label value {', '.join(str(value) for value in unknown[:10])}",
                expected=", ".join(str(value) for value in sorted(self.values)),
                fix=f"add them to [labels] in {FILE_NAME} (as background where they are none of ours), or correct the mask",
            )
        table = np.array([self.values[int(value)] for value in present], dtype=np.int16)
        mapped: NDArray[np.int16] = table[np.searchsorted(present, labels)]
        return mapped

    def label_facts(self) -> list[list[int]]:
        """The label values that differ, as plain JSON: part of what a stored case was made of."""
        return [[theirs, ours] for theirs, ours in sorted(self.values.items())]


def identity(num_channels: int) -> SiteMapping:
    """Of a dataset without ``site.toml``."""
    return SiteMapping(None, {}, tuple(range(num_channels)), num_channels)


def read_mapped_labels(path: Path, mapping: SiteMapping) -> Volume:
    """``read_labels``, in the federation's values; raises as it and ``SiteMapping.apply`` do."""
    labels = read_labels(path)
    return Volume(mapping.apply(labels.array, path), labels.geometry)


def read_site_mapping(folder: Path, scheme: LabelScheme, channel_names: Sequence[str]) -> SiteMapping:
    """Reads ``site.toml`` of a raw dataset; ``identity`` where there is none.

    Args:
        folder: the raw dataset's.
        scheme: the federation's labels.
        channel_names: the federation's channels, in order.

    Raises:
        FedsamError: not TOML, or keys, values or names that do not fit; all are listed at once.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return identity(len(channel_names))
    content = read_toml(path, what=FILE_NAME, fix=_FIX)
    faults = [f"{key}: unknown key (known: {', '.join(_SHAPES)})" for key in content if key not in _SHAPES]
    for key, kind in _SHAPES.items():
        if key in content and not isinstance(content[key], kind):
            faults.append(f"{key}: {content[key]!r} is not a {'text' if kind is str else 'table'}")
            del content[key]
    site = content.get("site")
    if site is not None and not is_safe_name(site):
        faults.append(f"site: {site!r} cannot be a file name (letters, digits, _ . and -)")
    values = _values(content.get("labels", {}), content.get("own_labels", {}), scheme, faults)
    order = _order(content.get("channels", {}), channel_names, faults)
    if faults:
        listed = "".join(f"\n    {fault}" for fault in faults)
        raise FedsamError(f"{FILE_NAME} is not usable", path=path, found=f"{len(faults)} faults{listed}", fix=_FIX)
    return SiteMapping(site, values, tuple(order.index(name) for name in channel_names), len(order))


def _values(labels: dict[str, Any], own: dict[str, Any], scheme: LabelScheme, faults: list[str]) -> dict[int, int]:
    """The site's values to the federation's; appends to ``faults``."""
    ours = scheme.classes | ({} if scheme.ignore is None else {IGNORE_NAME: scheme.ignore})
    for name, value in own.items():
        if not isinstance(value, int) or isinstance(value, bool):
            faults.append(f"own_labels.{name}: {value!r} is not a whole number")
    values: dict[int, int] = {}
    keys: dict[int, str] = {}
    for key, name in labels.items():
        theirs = own[key] if key in own else _number(key)
        if theirs is None:
            faults.append(f"labels.{key}: neither a value nor a name of own_labels ({', '.join(own) or 'which is empty'})")
        if not isinstance(name, str) or name not in ours:
            faults.append(f"labels.{key}: {name!r} is not a label of dataset.json ({', '.join(ours)})")
        elif isinstance(theirs, int) and not isinstance(theirs, bool):
            if theirs in values:
                faults.append(f"labels.{key}: the value {theirs} is mapped already, by labels.{keys[theirs]}")
            values[theirs], keys[theirs] = ours[name], key
    unused = sorted(own.keys() - labels.keys())
    if unused:
        faults.append(f"own_labels: {', '.join(unused)} not mapped by labels")
    return {0: scheme.classes[BACKGROUND_NAME]} | values if values else {}


def _number(key: str) -> int | None:
    try:
        return int(key)
    except ValueError:
        return None


def _order(channels: dict[str, Any], names: Sequence[str], faults: list[str]) -> list[str]:
    """What the files ``_0000``, ``_0001``, ... hold; appends to ``faults``."""
    faults += [f"channels.{key}: unknown key (known: order)" for key in channels if key != "order"]
    order = channels.get("order", list(names))
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        faults.append(f"channels.order: {order!r} is not a list of names")
        return list(names)
    unknown = [name for name in order if name not in names and name != UNUSED]
    missing = [name for name in names if name not in order]
    twice = sorted({name for name in order if name != UNUSED and order.count(name) > 1})
    if unknown:
        faults.append(
            f'channels.order: {", ".join(unknown)} not in channel_names of dataset.json ("{UNUSED}" for a channel that is not used)'
        )
    if missing:
        faults.append(f"channels.order: {', '.join(missing)} of channel_names missing")
    if twice:
        faults.append(f"channels.order: {', '.join(twice)} more than once")
    return order
