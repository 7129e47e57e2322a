"""One image beside what the plan covers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.volume import Volume
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.coverage import ChannelCoverage, Coverage, Interval

Lengths = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class ImageView:
    """What quality control keeps of an image until its mask is there: an eighth of a byte a voxel and channel.

    Args:
        spacing: mm, (z, y, x) in canonical orientation.
        extent: of the non-zero box, mm, (z, y, x) likewise.
        outside: channel to (Z, ceil(Y * X / 8)) uint8, a bit for each voxel of the file that is set where its intensity is not covered;
            ``None`` where no intensities are known.
    """

    spacing: Lengths
    extent: Lengths
    outside: dict[str, NDArray[np.uint8] | None]

    def outside_shares(self, mask: NDArray[Any]) -> dict[str, float | None]:
        """Channel to the share of the mask's foreground whose intensity is not covered; ``None`` where that is not known.

        Args:
            mask: (Z, Y, X) on the image's own grid, background 0.
        """
        foreground = int(np.count_nonzero(mask))
        known = {name: bits for name, bits in self.outside.items() if bits is not None and foreground}
        return {name: _marked(known[name], mask) / foreground if name in known else None for name in self.outside}


def view_image(volume: Volume, properties: CaseProperties, channels: tuple[str, ...], coverage: Coverage | None) -> ImageView:
    """Looks at an image as it was read, before its voxels are let go.

    Args:
        volume: (C, Z, Y, X), any orientation.
        properties: what preprocessing found.
        channels: names, in order.
        coverage: ``None`` where nothing is known: then no voxel is looked at.
    """
    z, y, x = volume.geometry.canonical().spacing
    depth, height, width = properties.crop_size
    covered: tuple[ChannelCoverage | None, ...] = (None,) * len(channels) if coverage is None else coverage.channels
    outside = {
        name: _outside(values, known.spans) if known is not None and known.spans else None
        for name, values, known in zip(channels, volume.array, covered, strict=True)
    }
    return ImageView((z, y, x), (depth * z, height * y, width * x), outside)


def beyond(length: float, covered: Interval) -> float:
    """The factor by which a positive length lies beyond a range; 0 within."""
    low, high = covered
    if low <= length <= high:
        return 0.0
    return low / length if length < low else length / high


def _outside(values: NDArray[np.float32], spans: tuple[Interval, ...]) -> NDArray[np.uint8]:
    """(Z, Y, X) intensities to bits, slice by slice."""
    packed = np.empty((len(values), -(-values[0].size // 8)), dtype=np.uint8)
    for row, part in zip(packed, values, strict=True):
        inside = np.zeros(part.shape, dtype=np.bool_)
        for low, high in spans:
            inside |= (part >= np.float32(low)) & (part <= np.float32(high))
        row[:] = np.packbits(~inside)
    return packed


def _marked(bits: NDArray[np.uint8], mask: NDArray[Any]) -> int:
    """Foreground voxels whose bit is set."""
    total = 0
    for row, part in zip(bits, mask, strict=True):
        foreground = part.ravel() > 0
        if foreground.any():
            total += int(np.count_nonzero(np.unpackbits(row, count=part.size)[foreground]))
    return total
