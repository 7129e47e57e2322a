"""Cuts the slabs of one optimizer step from a site's preprocessed store."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.prompts import ImagePrompt, Prompts
from fedsam_pipeline.preprocessing.slabs import encoder_inputs, labels_to_image_size, read_slab, to_image_size
from fedsam_pipeline.preprocessing.store import CaseRecord, CaseStore, StoredCase
from fedsam_pipeline.preprocessing.views import View, views
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.training.augment import SlabAugmentation
from fedsam_pipeline.training.prompt_draws import draw_prompts
from fedsam_pipeline.training.randomness import sample_generator


class Batch(NamedTuple):
    """The slabs of one optimizer step, N = slabs a step x slab depth."""

    images: Tensor
    """(N, 3, size, size) float32; or what the frozen part of the encoder made of them, see ``feature_pool.py``"""
    labels: Tensor
    """(N, size, size) int64; -1 where nobody annotated"""
    annotated: Tensor | None
    """(N, K) boolean: classes that the slice's site annotated; ``None`` where all were"""
    prompts: Prompts | None
    """of the N slices; ``None`` where no slice has any"""

    def pinned(self) -> "Batch":
        """In page-locked memory, from which a GPU copies while it computes."""
        annotated = None if self.annotated is None else self.annotated.pin_memory()
        prompts = None if self.prompts is None else Prompts(*(tensor.pin_memory() for tensor in self.prompts))
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), annotated, prompts)


class Sample(NamedTuple):
    """One slab of D slices as it enters a batch."""

    case: str
    view: View
    """that it was cut in"""
    images: Tensor
    """(D, 3, size, size) float32"""
    labels: Tensor
    """(D, size, size) int64"""


def slabs_per_step(plans: Plans) -> int:
    """Slabs of one optimizer step."""
    return max(1, plans.training.effective_batch // plans.slab_depth)


class SlabLoader:
    """Random slabs of some cases, foreground oversampled.

    Each slab draws a case (all equally likely), then with probability ``plans.training.foreground_fraction`` a class among those the
    case has and a voxel of that class to lie in the slab and the window; otherwise any place, or, where the case has ignored voxels, any
    place that holds an annotated one. With several views each slab draws the one that it is cut in, all equally likely.

    Args:
        store: the site's preprocessed cases.
        cases: which of them to train on.
        plans: the plan.
        annotated: case to the foreground values that its site annotated; cases that are not named have all classes annotated.
        configuration: which views there are.
    """

    def __init__(
        self,
        store: CaseStore,
        cases: Sequence[str],
        plans: Plans,
        annotated: Mapping[str, Sequence[int]] | None = None,
        configuration: Configuration = "main",
    ) -> None:
        if not cases:
            raise FedsamError("a site has no training case in this fold", path=store.folder, fix="use another fold, or -f all")
        self.cases = tuple(sorted(cases))
        self._store, self._plans = store, plans
        self._views = [(view, SlabAugmentation(view.plans.window, view.plans.training.mirror_axes)) for view in views(plans, configuration)]
        self._open: dict[str, StoredCase] = {}
        self._annotated = {case: _flags(values, plans.num_classes) for case, values in (annotated or {}).items() if case in self.cases}
        self.slabs_per_step = slabs_per_step(plans)
        self.num_views = len(self._views)

    def of_round(self, seed: int, round_number: int, site: str, local_steps: int) -> Callable[[int], Batch]:  # noqa: ARG002
        """The batches of a round by step. They can be made in any order, at any time."""
        return partial(self.batch, seed, round_number, site)

    def batch(self, seed: int, round_number: int, site: str, step: int) -> Batch:
        """The slabs of one optimizer step."""
        generators = [sample_generator(seed, round_number, site, step * self.slabs_per_step + i) for i in range(self.slabs_per_step)]
        samples = [self.sample(generator) for generator in generators]
        labels, views = [sample.labels for sample in samples], [sample.view for sample in samples]
        return Batch(
            torch.cat([sample.images for sample in samples]),
            torch.cat(labels),
            self.annotated([sample.case for sample in samples]),
            self.prompts(labels, views, generators),
        )

    def sample(self, generator: np.random.Generator, case: str | None = None) -> Sample:
        """One slab, of this case or of one that is drawn; ``generator`` is the source of all randomness."""
        name = self.cases[generator.integers(len(self.cases))] if case is None else case
        view, augment = self._drawn_view(generator)
        return Sample(name, view, *self._slab(self._case(name), view, augment, generator))

    def view(self, generator: np.random.Generator) -> View:
        """That in which ``sample`` would cut a slab of a given case with this generator."""
        return self._drawn_view(generator)[0]

    def annotated(self, cases: Sequence[str]) -> Tensor | None:
        """(N, K) for slabs of these cases: classes that each slice's site annotated; ``None`` where all cases have all."""
        if not self._annotated:
            return None
        everything = torch.ones(self._plans.num_classes, dtype=torch.bool)
        return torch.stack([self._annotated.get(case, everything) for case in cases for _ in range(self._plans.slab_depth)])

    def prompts(self, labels: Sequence[Tensor], views: Sequence[View], generators: Sequence[np.random.Generator]) -> Prompts | None:
        """Prompts for slabs with these labels, each (D, size, size) and cut in its view; ``None`` without any, or in a plan without."""
        if self._plans.prompts.mode == "auto":
            return None
        drawn: list[list[ImagePrompt]] = []
        for slab, view, generator in zip(labels, views, generators, strict=True):
            drawn += draw_prompts(slab.numpy(), view.plans, generator)
        return Prompts.of(drawn)

    def record(self, case: str) -> CaseRecord:
        """What the store says of a case."""
        return self._case(case).record

    def _slab(self, case: StoredCase, view: View, augment: SlabAugmentation, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        plans = view.plans
        first, origin = self._place(case, view, generator)
        margin = plans.max_offset
        image = read_slab(view.volume(case.image), first, plans.slab_depth, margin, origin=origin, window=plans.window)
        label = read_slab(view.volume(case.labels), first, plans.slab_depth, origin=origin, window=plans.window, fill=0)
        augmented, moved = augment(image.numpy(), label.numpy(), generator)
        inputs = encoder_inputs(torch.from_numpy(augmented), plans)
        size = plans.image_size
        return to_image_size(inputs, size), labels_to_image_size(torch.from_numpy(moved), size).long()

    def _drawn_view(self, generator: np.random.Generator) -> tuple[View, SlabAugmentation]:
        return self._views[generator.integers(len(self._views)) if len(self._views) > 1 else 0]

    def _case(self, name: str) -> StoredCase:
        if name not in self._open:
            self._open[name] = self._store.open(name)
        return self._open[name]

    def _place(self, case: StoredCase, view: View, generator: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """First slice and (top, left) of the window."""
        plans = view.plans
        slices, height, width = view.volume(case.labels).shape
        present = [value for value, voxels in case.foreground.items() if len(voxels)]
        if present and generator.random() < plans.training.foreground_fraction:
            voxels = case.foreground[present[generator.integers(len(present))]]
        else:
            voxels = case.annotated
        if len(voxels):
            centre = view.voxels(voxels)[generator.integers(len(voxels))]
            low = int(centre[0]) - int(generator.integers(plans.slab_depth))
            origin = [
                _near(int(centre[1 + i]), window, size, generator)
                for i, (window, size) in enumerate(zip(plans.window, (height, width), strict=True))
            ]
        else:
            low = int(generator.integers(max(1, slices - plans.slab_depth + 1)))
            origin = [_anywhere(window, size, generator) for window, size in zip(plans.window, (height, width), strict=True)]
        first = min(max(low, 0), max(0, slices - plans.slab_depth))
        return first, (origin[0], origin[1])


def _flags(values: Sequence[int], num_classes: int) -> Tensor:
    """(K,) boolean, true for background and ``values``."""
    flags = torch.zeros(num_classes, dtype=torch.bool)
    flags[[0, *values]] = True
    return flags


def _anywhere(window: int, size: int, generator: np.random.Generator) -> int:
    """A window's start within the axis; where the axis is shorter than the window, anywhere that keeps the whole axis in it."""
    low, high = min(0, size - window), max(0, size - window)
    return int(generator.integers(low, high + 1))


def _near(centre: int, window: int, size: int, generator: np.random.Generator) -> int:
    """Like ``_anywhere``, among the starts that contain ``centre``."""
    low, high = min(0, size - window), max(0, size - window)
    low, high = max(low, centre - window + 1), min(high, centre)
    return int(generator.integers(low, high + 1))
