"""A volume in, class logits out: windows over the plane and over the slices, one adapter."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedsam_pipeline.inference.prompts import VolumePrompt, image_prompts
from fedsam_pipeline.inference.windows import AxisWindow, axis_windows, plane_windows
from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.preprocessing.slabs import (
    SliceableVolume,
    encoder_inputs,
    from_image_size,
    read_slab,
    to_image_size,
)
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

    Memory: one float32 volume of K classes at target spacing, the embeddings of one slab or batch, and nothing that grows with both.

    Args:
        model: in evaluation mode, on ``device``.
        plans: the plan that the model was trained with.
        device: where the model runs; the result is gathered in main memory.
        autocast_dtype: ``torch.bfloat16`` on hardware that has it; ``None`` computes in float32.
        batch_slices: slices that are encoded at once.
        mirror_axes: test-time augmentation: the logits are averaged over all combinations of mirroring along these axes of (S, H, W).
            Axis 0 is left out where no slice sees another, because it would change nothing.
    """

    def __init__(
        self,
        model: SliceModel,
        plans: Plans,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
        batch_slices: int = 16,
        mirror_axes: Sequence[int] = (),
    ) -> None:
        if batch_slices < 1 or not set(mirror_axes) <= {0, 1, 2}:
            raise ValueError(f"batch_slices must be positive and mirror_axes among 0, 1, 2: {batch_slices}, {tuple(mirror_axes)}")
        self.model = model
        self.plans = plans
        self.device = torch.device(device)
        self.autocast_dtype = autocast_dtype
        self.batch_slices = batch_slices
        self.mixes_slices = bool(getattr(model, "mixes_slices", False))
        slices_see_others = self.mixes_slices or plans.max_offset > 0
        axes = sorted(axis for axis in set(mirror_axes) if axis != 0 or slices_see_others)
        self.mirrorings = [subset for count in range(len(axes) + 1) for subset in combinations(axes, count)]

    @torch.inference_mode()
    def predict_case(
        self,
        image: SliceableVolume,
        on_progress: Callable[[float], object] | None = None,
        prompts: Sequence[VolumePrompt] = (),
    ) -> NDArray[np.float32]:
        """Predicts one preprocessed volume.

        Args:
            image: (C, S, H, W), array or lazily sliced store.
            on_progress: called after every batch with the share of the work that it was; the shares add up to one.
            prompts: for a model that was planned with prompts; slices and classes without any are found as without.

        Returns:
            Logits (K, S, H, W), float32.

        Raises:
            ValueError: the volume has another number of channels than the plan, the model is in training mode or returns another number of
                classes.
        """
        if self.model.training:
            raise ValueError("the model is in training mode: call model.eval() first")
        if len(image.shape) != 4 or image.shape[0] != len(self.plans.channels):
            raise ValueError(f"expected a volume (C, S, H, W) with {len(self.plans.channels)} channels, found {tuple(image.shape)}")
        _, num_slices, height, width = image.shape
        logits = torch.zeros((self.plans.num_classes, num_slices, height, width), dtype=torch.float32)
        windows = plane_windows((height, width), self.plans.window, self.plans.window_overlap)
        slabs = self._slabs(num_slices)
        share = 1 / (len(windows) * len(self.mirrorings) * len(slabs))
        for rows, columns in windows:
            for mirrored in self.mirrorings:
                for slab, part in self._predict_window(image, rows, columns, slabs, mirrored, prompts):
                    weights = slab.weights[:, None, None] * rows.weights[:, None] * columns.weights / len(self.mirrorings)
                    visible = part[slab.inside, :, rows.inside, columns.inside].movedim(1, 0)
                    logits[:, slab.covered, rows.covered, columns.covered] += visible * torch.from_numpy(weights)
                    if on_progress is not None:
                        on_progress(share)
        result: NDArray[np.float32] = logits.numpy()
        return result

    def _slabs(self, num_slices: int) -> list[AxisWindow]:
        """Overlapping weighted slabs where slices mix, else plain batches."""
        if self.mixes_slices:
            return axis_windows(num_slices, self.plans.slab_depth, self.plans.window_overlap)
        starts = range(0, num_slices, self.batch_slices)
        return [AxisWindow(s, n, s, np.ones(n, np.float32)) for s in starts for n in [min(self.batch_slices, num_slices - s)]]

    def _predict_window(
        self,
        image: SliceableVolume,
        rows: AxisWindow,
        columns: AxisWindow,
        slabs: list[AxisWindow],
        mirrored: tuple[int, ...],
        prompts: Sequence[VolumePrompt],
    ) -> Iterator[tuple[AxisWindow, torch.Tensor]]:
        """Yields every slab with its logits (D, K, h, w), float32 in main memory, at the window's voxels and not mirrored any more."""
        last_slice = image.shape[1] - 1
        embeddings: dict[int, torch.Tensor] = {}  # of the slices that this slab and later ones need, each computed once
        for slab in slabs:
            wanted = [min(max(s, 0), last_slice) for s in range(slab.start, slab.start + slab.length)]
            for old in [s for s in embeddings if s < wanted[0]]:
                del embeddings[old]
            missing = sorted(set(wanted) - embeddings.keys())
            for at in range(0, len(missing), self.batch_slices):
                batch = missing[at : at + self.batch_slices]
                encoded = self._encode(image, batch[0], len(batch), rows, columns, mirrored)
                embeddings.update(zip(batch, encoded, strict=True))
            ordered = wanted[::-1] if 0 in mirrored else wanted
            size = self.plans.image_size
            asked = [image_prompts(prompts, s, (rows.start, columns.start), self.plans.window, size, mirrored) for s in ordered]
            part = self._decode(torch.stack([embeddings[s] for s in ordered]), Prompts.of(asked))
            part = from_image_size(part, self.plans.window)
            yield slab, part.flip([_LOGIT_AXES[axis] for axis in mirrored]).cpu()

    def _encode(
        self, image: SliceableVolume, first: int, count: int, rows: AxisWindow, columns: AxisWindow, mirrored: tuple[int, ...]
    ) -> torch.Tensor:
        """Embeddings (count, E, h, w) of the consecutive slices from ``first`` on, in ascending order."""
        stack = read_slab(image, first, count, self.plans.max_offset, origin=(rows.start, columns.start), window=self.plans.window).to(
            self.device
        )
        inputs = encoder_inputs(stack.flip([axis - 3 for axis in mirrored]), self.plans)
        if 0 in mirrored:  # the neighbours changed sides; the batch stays in ascending order
            inputs = inputs.flip(0)
        with self._precision():
            return self.model.encode(to_image_size(inputs, self.plans.image_size))

    def _decode(self, embeddings: torch.Tensor, prompts: Prompts | None) -> torch.Tensor:
        with self._precision():
            logits = self.model.decode(embeddings, None if prompts is None else prompts.to(self.device))
        if logits.shape[1] != self.plans.num_classes:
            raise ValueError(f"the model returns {logits.shape[1]} classes, the plan has {self.plans.num_classes}")
        return logits.float()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None)


_LOGIT_AXES = {0: 0, 1: 2, 2: 3}
"""axis of (S, H, W) to axis of a slab's logits (D, K, h, w)"""
