"""Training on a finite pool of slabs, with what the frozen first part of the encoder makes of them kept on disk.

A recipe with ``[cache]`` trains on ``slabs_per_case`` slabs of every case. Slab ``n`` of the pool is drawn, cut and augmented from (seed,
site, ``n``) alone. A run goes through the pool again and again, each time in an order drawn from (seed, site, pass): the draw of a step
is a function of round and step only, so that resuming equals going on. Prompts are drawn anew at every visit.

The features of a slab are computed at its first visit, one slab at a time whatever the batch, so that they are the same bits on whichever
visit that is. They are kept as the encoder computes them, without rounding: under bfloat16 autocast ViT's residual stream is float32,
TinyViT's feature maps are bfloat16. Their file is signed by all that decides them: weights, cases, plan, seed, precision, and the versions
of what cuts slabs and computes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from fedsam_pipeline.model.encoder_split import EncoderSplit
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import CacheRecipe
from fedsam_pipeline.training.feature_file import FeatureFile, RecordLayout
from fedsam_pipeline.training.prefetch import prefetched
from fedsam_pipeline.training.randomness import sample_generator
from fedsam_pipeline.training.slab_loader import Batch, Sample, SlabLoader

FILE_NAME = "features.bin"
FORMAT = 1
"""of the pool's draws and of the file; part of its signature"""
MADE_WITH = ("torch", "numpy", "batchgenerators")
"""whose next version may cut, augment or round in another way"""
POOL_ROUND = 0
"""takes a round's place in the seed of what does not depend on the round; rounds count from 1"""


class SlabPool:
    """The pool's slabs by number.

    Args:
        loader: cuts them.
        cache: how many there are.
        seed, site: what they are drawn from.
    """

    def __init__(self, loader: SlabLoader, cache: CacheRecipe, seed: int, site: str) -> None:
        self._loader, self._per_case, self._seed, self._site = loader, cache.slabs_per_case, seed, site
        self.size = cache.slabs_per_case * len(loader.cases)

    def numbers(self, first: int, count: int) -> list[int]:
        """The slabs of ``count`` draws from the run's draw ``first`` on: every pass takes each slab once, in an order of its own."""
        found: list[int] = []
        while len(found) < count:
            which, start = divmod(first + len(found), self.size)
            order = sample_generator(self._seed, POOL_ROUND, self._site, self.size + which).permutation(self.size)
            found += order[start : start + count - len(found)].tolist()
        return found

    def case(self, number: int) -> str:
        """The case that a slab is of."""
        return self._loader.cases[number // self._per_case]

    def sample(self, number: int) -> Sample:
        """A slab, cut and augmented."""
        return self._loader.sample(sample_generator(self._seed, POOL_ROUND, self._site, number), self.case(number))

    def batch(self, images: Tensor, labels: list[Tensor], numbers: list[int], round_number: int, first: int) -> Batch:
        """A step's batch.

        Args:
            images: of the slabs, or their features.
            labels: (D, size, size) int64 of each slab.
            numbers: of the slabs.
            round_number: the round.
            first: the draw within the round that the first slab is, for its prompts.
        """
        views = [self._loader.view(sample_generator(self._seed, POOL_ROUND, self._site, number)) for number in numbers]
        generators = [sample_generator(self._seed, round_number, self._site, first + i) for i in range(len(numbers))]
        annotated = self._loader.annotated([self.case(number) for number in numbers])
        return Batch(images, torch.cat(labels), annotated, self._loader.prompts(labels, views, generators))


class PooledLoader:
    """Batches of the pool, cut anew each time: the same training without a file."""

    def __init__(self, loader: SlabLoader, cache: CacheRecipe) -> None:
        self._loader, self._cache = loader, cache

    def of_round(self, seed: int, round_number: int, site: str, local_steps: int) -> Callable[[int], Batch]:
        """The batches of a round by step."""
        pool, slabs = SlabPool(self._loader, self._cache, seed, site), self._loader.slabs_per_step

        def batch(step: int) -> Batch:
            numbers = pool.numbers(((round_number - 1) * local_steps + step) * slabs, slabs)
            samples = [pool.sample(number) for number in numbers]
            images = torch.cat([sample.images for sample in samples])
            return pool.batch(images, [sample.labels for sample in samples], numbers, round_number, step * slabs)

        return batch


class FeatureLoader:
    """Batches of the pool whose images are features of the frozen part of the encoder.

    Args:
        loader: cuts the slabs.
        cache: the pool.
        split: the encoder.
        plans: the plan.
        folder: where the features are kept.
        device: where the model is.
        dtype: of autocast; ``None`` for float32.
    """

    def __init__(
        self,
        loader: SlabLoader,
        cache: CacheRecipe,
        split: EncoderSplit,
        plans: Plans,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self._loader, self._cache, self._split, self._plans = loader, cache, split, plans
        self._path, self._device, self._dtype = folder / FILE_NAME, device, dtype
        self._encoder_sha256 = split.sha256()

    def of_round(self, seed: int, round_number: int, site: str, local_steps: int) -> Callable[[int], Batch]:
        """The batches of a round by step. Features that the round needs and the file lacks are computed first.

        Raises:
            FedsamError: the disk is full, or the file cannot be used.
        """
        pool, slabs = SlabPool(self._loader, self._cache, seed, site), self._loader.slabs_per_step
        numbers = pool.numbers((round_number - 1) * local_steps * slabs, local_steps * slabs)
        signature = self._signature(seed, site)
        with FeatureFile.open(self._path, signature) or FeatureFile.create(self._path, signature, self._layout(), pool.size) as kept:
            self._complete(kept, pool, numbers)
        return partial(self._batch, signature, pool, numbers, round_number)

    def _batch(self, signature: str, pool: SlabPool, numbers: list[int], round_number: int, step: int) -> Batch:
        slabs = self._loader.slabs_per_step
        chosen = numbers[step * slabs : (step + 1) * slabs]
        with self._reopened(signature) as kept:
            features, labels = kept.layout.buffers(slabs)
            for row, number in enumerate(chosen):
                if not kept.read_into(number, features[row], labels[row]):
                    raise RuntimeError(f"slab {number} was in {self._path} when the round began and is not there any more")
            return pool.batch(kept.shaped(features), list(labels.long()), chosen, round_number, step * slabs)

    def _reopened(self, signature: str) -> FeatureFile:
        kept = FeatureFile.open(self._path, signature)
        if kept is None:
            raise RuntimeError(f"{self._path} was replaced while a round was training on it")
        return kept

    def _complete(self, kept: FeatureFile, pool: SlabPool, numbers: Iterable[int]) -> None:
        """Computes the features that the file lacks."""
        features, labels = kept.layout.buffers(1)
        missing = [number for number in sorted(set(numbers)) if not kept.read_into(number, features[0], labels[0])]
        with prefetched(lambda i: pool.sample(missing[i]), len(missing)) as samples:
            for number, sample in zip(missing, samples, strict=True):
                kept.write(number, self._features(sample.images), sample.labels)

    def _features(self, images: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            return self._split.before(images.to(self._device))

    def _layout(self) -> RecordLayout:
        depth, size = self._plans.slab_depth, self._plans.image_size
        return RecordLayout.of(self._features(torch.zeros(depth, 3, size, size)), (depth, size, size), self._plans.num_classes)

    def _signature(self, seed: int, site: str) -> str:
        decides = {
            "format": FORMAT,
            "encoder": self._encoder_sha256,
            "plans": self._plans.sha256(),
            "slabs_per_case": self._cache.slabs_per_case,
            "cases": [[case, self._loader.record(case).sha256()] for case in self._loader.cases],
            "views": self._loader.num_views,
            "seed": seed,
            "site": site,
            "precision": [self._device.type, str(self._dtype), "compiled" if self._split.compiled else "as written"],
            "versions": {name: version(name) for name in MADE_WITH},
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
