"""Self-prompting: what the first pass finds prompts the second.

Every object of a class that the first pass finds on a slice becomes a prompt of the kind that the model was trained with: its box, or a
point in it. Objects are those of training (``model.objects``): at most four of a class on a slice. Classes and slices without an object are
found without a prompt, as in the first pass.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.inference.agreement import CaseAgreement
from fedsam_pipeline.inference.ensemble import Predictors, stream_ensemble
from fedsam_pipeline.inference.prompts import VolumePrompt
from fedsam_pipeline.model.objects import inner_pixel, slice_objects
from fedsam_pipeline.preprocessing.slabs import SliceableVolume
from fedsam_pipeline.specs.plans import Plans


def found_prompts(parts: Iterable[NDArray[np.float32]], plans: Plans) -> list[VolumePrompt]:
    """A prompt for every object in the arg max of class scores.

    Args:
        parts: (n, K, H, W) of the next n slices, as ``stream_ensemble`` yields them.
        plans: with ``prompts.mode`` ``box`` or ``point``.

    Raises:
        ValueError: a plan without prompts.
    """
    if plans.prompts.mode == "auto":
        raise ValueError("this model was planned without prompts")
    found: list[VolumePrompt] = []
    first = 0
    for part in parts:
        for s, plane in enumerate(part.argmax(axis=1), start=first):
            for label in np.unique(plane[plane > 0]).tolist():
                for pixels in slice_objects(plane, label):
                    if plans.prompts.mode == "box":
                        (top, left), (bottom, right) = pixels.min(axis=0).tolist(), pixels.max(axis=0).tolist()
                        found.append(VolumePrompt("box", label, (s, top, left), (s, bottom, right), own_slice_only=True))
                    else:
                        y, x = inner_pixel(pixels, pixels.mean(axis=0))
                        found.append(VolumePrompt("point", label, (s, y, x), (s, y, x), own_slice_only=True))
        first += len(part)
    return found


def stream_self_prompted(
    predictors: Predictors,
    image: SliceableVolume,
    folder: Path,
    plans: Plans,
    on_progress: Callable[[float], object] | None = None,
    prompts: Sequence[VolumePrompt] = (),
    *,
    agreement: CaseAgreement | None = None,
) -> Iterator[NDArray[np.float32]]:
    """As ``stream_ensemble``, in two passes: takes twice the time, and no more memory but for the prompts.

    The first pass is the whole ensemble's, so that all its members are prompted alike.

    Args:
        predictors, image, folder, on_progress: as there.
        plans: as in ``found_prompts``.
        agreement: as there, of the second pass.
        prompts: a person's. Both passes are given them; where a class has one on a slice, nothing is added.

    Yields:
        The scores of the second pass, as ``stream_ensemble`` does.
    """

    def half_done(share: float) -> None:
        if on_progress is not None:
            on_progress(share / 2)

    marked = {(s, prompt.label) for prompt in prompts for s in prompt.slices}
    found = found_prompts(stream_ensemble(predictors, image, folder, half_done, prompts), plans)
    added = [prompt for prompt in found if (int(prompt.first[0]), prompt.label) not in marked]
    yield from stream_ensemble(predictors, image, folder, half_done, [*prompts, *added], agreement=agreement)
