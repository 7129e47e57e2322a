"""A volume in, class logits out: windows over the plane and over the slices, one adapter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate, combinations, pairwise, product, zip_longest
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedsam_pipeline.inference.agreement import Agreement, winner
from fedsam_pipeline.inference.landing import Landing, one_ahead, send
from fedsam_pipeline.inference.prompts import VolumePrompt, by_slice, image_prompts, turned_prompts
from fedsam_pipeline.inference.windows import AxisWindow, axis_windows, plane_windows
from fedsam_pipeline.model.compilation import uncompiled
from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.preprocessing.slabs import (
    SliceableVolume,
    encoder_inputs,
    from_image_size,
    read_slab,
    to_image_size,
)
from fedsam_pipeline.preprocessing.views import AS_STORED, Order, turned
from fedsam_pipeline.specs.plans import Plans


class SliceModel(Protocol):
    """What the predictor asks of a model. ``mixes_slices = True`` on it says that ``decode`` must see whole slabs."""

    @property
    def training(self) -> bool: ...

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, image_size, image_size) to embeddings (N, E, h, w), slice by slice."""
        ...

    def decode(self, embeddings: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        """(N, E, h, w) to logits (N, K, image_size, image_size), with the prompts of the N slices."""
        ...


class Predictor:
    """Sliding-window prediction of preprocessed volumes with one model.

    In-plane windows overlap by ``plans.window_overlap`` and their **logits** are averaged with Gaussian weights. Every slice is encoded
    once for each in-plane window (and mirroring). Where a slice's logits depend on its own encoder input alone (slice mixing ``none`` and
    ``neighbours``), a slice looks the same in every slab that contains it, and a weighted mean over slabs would be the mean of equal
    numbers: slices then go through in plain batches. A model that declares ``mixes_slices = True`` is decoded in slabs of
    ``plans.slab_depth`` that overlap and are averaged with Gaussian weights over depth; they share the embeddings of the slices they have
    in common.

    Neighbouring slices of a batch that are equal number for number in all that the encoder sees of them are encoded once and, where slices
    do not mix, decoded once: windows of air, which normalization clips to one value, and slices that resampling repeats. Equal images have
    equal answers, so that none changes.

    Slabs go from the first slice to the last, each through all windows and mirrorings before the next begins, so that finished slices can
    leave. In memory are the float32 logits (K, H, W) of the slices of one slab or batch, what the model makes of it, and, where slices
    mix, for each window and mirroring the embeddings of the slices that the next slab needs again: nothing that grows with the number of
    slices. A GPU is given the next window before the logits of one are added up here and leave, and so holds those of two.

    Args:
        model: in evaluation mode, on ``device``.
        plans: the plan that the model was trained with.
        device: where the model runs; the result is gathered in main memory.
        autocast_dtype: ``torch.bfloat16`` on hardware that has it; ``None`` computes in float32.
        batch_slices: slices that are encoded at once, and where slices do not mix decoded.
        mirror_axes: test-time augmentation: the logits are averaged over all combinations of mirroring along these axes of (S, H, W).
            Axis 0 is left out where no slice sees another, because it would change nothing.
        step_size: how far windows and slabs are apart, as a share of their length, in (0, 1]; ``None`` is ``1 - plans.window_overlap``.
        kept_embeddings: of at most so many slices embeddings are kept for the next slab; the others are encoded again. ``None``: of all.
        order: of the axes of the volumes that come, where the plan is that of a view along another axis (``View.order``). All axes above
            and the slices that leave are the view's.
    """

    def __init__(
        self,
        model: SliceModel,
        plans: Plans,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
        batch_slices: int = 16,
        mirror_axes: Sequence[int] = (),
        *,
        step_size: float | None = None,
        kept_embeddings: int | None = None,
        order: Order = AS_STORED,
    ) -> None:
        if batch_slices < 1 or not set(mirror_axes) <= {0, 1, 2}:
            raise ValueError(f"batch_slices must be positive and mirror_axes among 0, 1, 2: {batch_slices}, {tuple(mirror_axes)}")
        if step_size is not None and not 0 < step_size <= 1:
            raise ValueError(f"step_size is a share of a window above 0 and at most 1, not {step_size}")
        self.model = model
        self.plans = plans
        self.device = torch.device(device)
        self.autocast_dtype = autocast_dtype
        self.batch_slices = batch_slices
        self.overlap = plans.window_overlap if step_size is None else 1 - step_size
        self.kept_embeddings = kept_embeddings
        self.order = order
        self.mixes_slices = bool(getattr(model, "mixes_slices", False))
        slices_see_others = self.mixes_slices or plans.max_offset > 0
        axes = sorted(axis for axis in set(mirror_axes) if axis != 0 or slices_see_others)
        self.mirrorings = [subset for count in range(len(axes) + 1) for subset in combinations(axes, count)]

    def predict_case(
        self,
        image: SliceableVolume,
        on_progress: Callable[[float], object] | None = None,
        prompts: Sequence[VolumePrompt] = (),
    ) -> NDArray[np.float32]:
        """Predicts one preprocessed volume, and gathers the logits of all its slices: arguments and errors as ``stream_case``.

        Returns:
            Logits (K, S, H, W), float32.
        """
        logits: NDArray[np.float32] | None = None
        first = 0
        for part in self.stream_case(image, on_progress, prompts):
            if logits is None:
                logits = np.empty((part.shape[1], image.shape[1], *part.shape[2:]), dtype=np.float32)
            logits[:, first : first + len(part)] = np.moveaxis(part, 1, 0)
            first += len(part)
        assert logits is not None  # a volume has slices
        return logits

    @torch.inference_mode()
    def stream_case(
        self,
        image: SliceableVolume,
        on_progress: Callable[[float], object] | None = None,
        prompts: Sequence[VolumePrompt] = (),
        *,
        mirrors: Agreement | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """Predicts one preprocessed volume, slices in their order.

        Args:
            image: (C, S, H, W) as stored, array or lazily sliced store.
            on_progress: called after every batch with the share of the work that it was; the shares add up to one.
            prompts: on the volume as stored, for a model that was planned with prompts; slices and classes without any are found as
                without.
            mirrors: is given what each mirroring says, window by window.

        Yields:
            Logits (n, K, H, W), float32, of the next n slices; S in all. The array is overwritten once the next one is asked for.

        Raises:
            ValueError: the volume has another number of channels than the plan, the model is in training mode or returns another number of
                classes.
        """
        if self.model.training:
            raise ValueError("the model is in training mode: call model.eval() first")
        if len(image.shape) != 4 or image.shape[0] != len(self.plans.channels):
            raise ValueError(f"expected a volume (C, S, H, W) with {len(self.plans.channels)} channels, found {tuple(image.shape)}")
        image, prompts = turned(image, self.order), turned_prompts(prompts, self.order)
        _, num_slices, height, width = image.shape
        windows = plane_windows((height, width), self.plans.window, self.overlap)
        slabs = self._slabs(num_slices)
        depth = max(len(slab.weights) for slab in slabs)
        unfinished = torch.zeros((depth, self.plans.num_classes, height, width), dtype=torch.float32)  # the first one is slab.first
        embeddings = _Embeddings(self.kept_embeddings)
        views = list(product(windows, self.mirrorings))
        share = 1 / (len(views) * len(slabs))
        asked = by_slice(prompts)
        answers: list[torch.Tensor] = []  # of the mirrorings of one window
        parts = (
            self._predict_window(image, rows, columns, slab, mirrored, asked, embeddings, following)
            for slab, following in zip_longest(slabs, slabs[1:])
            for (rows, columns), mirrored in views
        )
        landings = one_ahead(parts) if self.device.type == "cuda" else parts
        for slab, following in zip_longest(slabs, slabs[1:]):
            for (rows, columns), _ in views:
                part = next(landings).wait()
                weights = slab.weights[:, None, None] * rows.weights[:, None] * columns.weights / len(self.mirrorings)
                visible = part[slab.inside, :, rows.inside, columns.inside]
                place = unfinished[: len(weights), :, rows.covered, columns.covered]
                place.addcmul_(visible, torch.from_numpy(weights[:, None]))
                if mirrors is not None:
                    answers.append(winner(visible))
                    if len(answers) == len(self.mirrorings):
                        mirrors.add(answers, weights)
                        answers.clear()
                if on_progress is not None:
                    on_progress(share)
            finished = (num_slices if following is None else following.first) - slab.first
            yield unfinished[:finished].numpy()
            if finished < depth:
                unfinished = unfinished.roll(-finished, 0)
            unfinished[depth - finished :] = 0

    def _slabs(self, num_slices: int) -> list[AxisWindow]:
        """Overlapping weighted slabs where slices mix, else plain batches."""
        if self.mixes_slices:
            return axis_windows(num_slices, self.plans.slab_depth, self.overlap)
        starts = range(0, num_slices, self.batch_slices)
        return [AxisWindow(s, n, s, np.ones(n, np.float32)) for s in starts for n in [min(self.batch_slices, num_slices - s)]]

    def _predict_window(
        self,
        image: SliceableVolume,
        rows: AxisWindow,
        columns: AxisWindow,
        slab: AxisWindow,
        mirrored: tuple[int, ...],
        prompts: Mapping[int, Sequence[VolumePrompt]],
        embeddings: "_Embeddings",
        following: AxisWindow | None,
    ) -> Landing:
        """The slab's logits (D, K, h, w), float32, at the window's voxels and not mirrored any more, on their way into main memory."""
        last_slice = image.shape[1] - 1
        wanted = [min(max(s, 0), last_slice) for s in range(slab.start, slab.start + slab.length)]
        known = embeddings.take((rows.start, columns.start, mirrored))
        missing = sorted(set(wanted) - known.keys())
        for at in range(0, len(missing), self.batch_slices):
            batch = missing[at : at + self.batch_slices]
            known |= zip(batch, self._encode(image, batch[0], len(batch), rows, columns, mirrored), strict=True)
        ordered = wanted[::-1] if 0 in mirrored else wanted
        size = self.plans.image_size
        asked = [image_prompts(prompts.get(s, ()), s, (rows.start, columns.start), self.plans.window, size, mirrored) for s in ordered]
        chosen = [known[s] for s in ordered]
        alike = [a is b and not (of_a or of_b) for (a, of_a), (b, of_b) in pairwise(zip(chosen, asked, strict=True))]
        firsts, number = _runs([False] * len(alike) if self.mixes_slices else alike)
        part = self._decode(torch.stack([chosen[at] for at in firsts]), Prompts.of([asked[at] for at in firsts]))
        part = from_image_size(part, self.plans.window)
        if len(firsts) < len(ordered):
            part = torch.stack([part[at] for at in number])  # an index would make a GPU's queue run empty
        if following is not None:
            first = max(following.start, 0)
            embeddings.keep((rows.start, columns.start, mirrored), {s: each for s, each in known.items() if s >= first})
        return Landing(part.flip([_LOGIT_AXES[axis] for axis in mirrored]) if mirrored else part)

    def _encode(
        self, image: SliceableVolume, first: int, count: int, rows: AxisWindow, columns: AxisWindow, mirrored: tuple[int, ...]
    ) -> list[torch.Tensor]:
        """Embeddings (E, h, w) of the ``count`` consecutive slices from ``first`` on, in ascending order; neighbours that are equal share
        one tensor."""
        margin = self.plans.max_offset
        stack = read_slab(image, first, count, margin, origin=(rows.start, columns.start), window=self.plans.window)
        equal = [torch.equal(stack[:, s], stack[:, s + 1]) for s in range(count + 2 * margin - 1)]
        firsts, number = _runs([all(equal[s : s + 2 * margin + 1]) for s in range(count - 1)])
        inputs = encoder_inputs(send(stack, self.device).flip([axis - 3 for axis in mirrored]), self.plans)
        if 0 in mirrored:  # the neighbours changed sides; the batch stays in ascending order
            inputs = inputs.flip(0)
        if len(firsts) < count:
            inputs = torch.stack([inputs[at] for at in firsts])
        # each number of images is compiled for itself, which the rest of a volume is not worth
        rest = len(inputs) < min(self.batch_slices, image.shape[1]) and not self.mixes_slices
        with self.precision(), uncompiled(self.model) if rest else nullcontext():
            encoded = self.model.encode(to_image_size(inputs, self.plans.image_size)).unbind(0)
        return [encoded[at] for at in number]

    def _decode(self, embeddings: torch.Tensor, prompts: Prompts | None) -> torch.Tensor:
        with self.precision():
            logits = self.model.decode(embeddings, None if prompts is None else prompts.to(self.device))
        if logits.shape[1] != self.plans.num_classes:
            raise ValueError(f"the model returns {logits.shape[1]} classes, the plan has {self.plans.num_classes}")
        return logits.float()

    def precision(self) -> torch.autocast:
        """The context in which the model runs."""
        return torch.autocast(self.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None)


def _runs(alike: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Runs of like items, from whether each of them is like the one before it (the first is not asked for).

    Returns:
        The first item of every run, and for every item the number of its run.
    """
    number = [0, *accumulate(int(not same) for same in alike)]
    return [at for at, run in enumerate(number) if at == 0 or run != number[at - 1]], number


_LOGIT_AXES = {0: 0, 1: 2, 2: 3}
"""axis of (S, H, W) to axis of a slab's logits (D, K, h, w)"""


class _Embeddings:
    """Embeddings that the next slab needs again, by window and mirroring, then by slice.

    Args:
        limit: keep those of at most so many slices.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._kept: dict[tuple[int, int, tuple[int, ...]], dict[int, torch.Tensor]] = {}
        self._count = 0

    def take(self, view: tuple[int, int, tuple[int, ...]]) -> dict[int, torch.Tensor]:
        """What is kept of a view, which is then the caller's."""
        found = self._kept.pop(view, {})
        self._count -= len(found)
        return found

    def keep(self, view: tuple[int, int, tuple[int, ...]], embeddings: dict[int, torch.Tensor]) -> None:
        """Keeps them if there is room. Cloned: a slice's embedding is a view of its whole batch."""
        if embeddings and (self._limit is None or self._count + len(embeddings) <= self._limit):
            self._kept[view] = {s: each.clone() for s, each in embeddings.items()}
            self._count += len(embeddings)
