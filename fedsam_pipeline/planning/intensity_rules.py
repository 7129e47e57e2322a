"""Rules on intensities: how each channel is normalized, and how channels become the encoder's three inputs."""

from typing import Literal

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.planning.decision import Decision
from fedsam_pipeline.planning.grids import FRACTION_STEP, intensity_value, linear_value, median, quantile, quantile_range
from fedsam_pipeline.planning.thresholds import IntensityRules
from fedsam_pipeline.preprocessing.normalize import MIN_STD
from fedsam_pipeline.specs.fingerprint import ChannelFingerprint, Counts
from fedsam_pipeline.specs.plans import ChannelPlan, InputTerm

EncoderInputs = tuple[tuple[InputTerm, ...], tuple[InputTerm, ...], tuple[InputTerm, ...]]


def channel_plan(channel: ChannelFingerprint, kept_fraction: Counts, rules: IntensityRules) -> Decision[ChannelPlan]:
    """nnU-Net's schemes: CT by the channel's name, otherwise a z-score, within the non-zero voxels where cropping removed much.

    Raises:
        FedsamError: a CT channel without a foreground voxel that any site releases.
    """
    if channel.name.casefold() in rules.ct_names:
        if not channel.moments.weight:
            raise FedsamError(
                f"channel {channel.name} cannot be planned: no case has a labelled foreground voxel",
                found="empty masks only, or too few others at every site for its privacy floor",
                expected="foreground in some case",
                fix="check labelsTr: do the masks hold background only? Where all data are your own: --privacy_floor 1",
            )
        low, high = _clip(channel.histogram, rules.ct_clip)
        moments = channel.moments
        plan = ChannelPlan(name=channel.name, scheme="ct", clip_low=low, clip_high=high, mean=moments.mean, std=max(moments.std, MIN_STD))
        return Decision(
            plan,
            f"named {channel.name}: Hounsfield units; clip to percentiles {100 * rules.ct_clip[0]:g} and {100 * rules.ct_clip[1]:g} of the "
            f"foreground ({low:.4g} to {high:.4g}), then the federation's mean {moments.mean:.4g} and standard deviation {moments.std:.4g}",
        )
    kept = linear_value(median(kept_fraction), FRACTION_STEP)
    scheme: Literal["zscore", "zscore_nonzero"] = "zscore_nonzero" if kept < rules.nonzero_below else "zscore"
    relation = "<" if kept < rules.nonzero_below else ">="
    where = "within the non-zero voxels" if scheme == "zscore_nonzero" else "over the whole image"
    return Decision(
        ChannelPlan(name=channel.name, scheme=scheme),
        f"{channel.name} has no fixed scale: each case's own mean and standard deviation, {where} (cropping keeps {kept:.3g} of the median "
        f"volume, {relation} {rules.nonzero_below:g})",
    )


def _clip(histogram: Counts, ends: tuple[float, float]) -> tuple[float, float]:
    """The values at two quantiles; where both lie in one bin, the values beside it: the first is always below the second."""
    low, high = (quantile(histogram, q) for q in ends)
    if low == high:
        low, high = quantile_range(histogram, ends[0])[0] - 1, quantile_range(histogram, ends[1])[1] + 1
    return intensity_value(low), intensity_value(high)


def encoder_inputs(num_channels: int, mixing: Literal["none", "neighbours", "mixer"]) -> Decision[EncoderInputs]:
    """Fills the three input channels that SAM's encoders expect; each is the mean of its terms."""
    if num_channels == 1 and mixing == "neighbours":
        previous, same, following = (InputTerm(channel=0, offset=offset) for offset in (-1, 0, 1))
        return Decision(((previous,), (same,), (following,)), "the slice before, the slice itself, the slice after")
    terms = [InputTerm(channel=channel, offset=0) for channel in range(num_channels)]
    if num_channels == 1:
        return Decision(((terms[0],), (terms[0],), (terms[0],)), "the one channel three times, as SAM's grey images")
    if num_channels == 2:
        return Decision(((terms[0],), (terms[1],), (terms[0], terms[1])), "both channels, and their mean")
    if num_channels == 3:
        return Decision(((terms[0],), (terms[1],), (terms[2],)), "one channel each")
    groups = [tuple(terms[round(part * num_channels / 3) : round((part + 1) * num_channels / 3)]) for part in range(3)]
    return Decision((groups[0], groups[1], groups[2]), f"{num_channels} channels in three groups of neighbours, each averaged")
