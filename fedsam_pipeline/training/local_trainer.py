"""Trains an adapter on one site's cases. Knows nothing of federation."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from fedsam_pipeline.model.build import AdaptedModel
from fedsam_pipeline.model.device import autocast_dtype
from fedsam_pipeline.model.encoder_split import EncoderSplit
from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import Recipe
from fedsam_pipeline.training.feature_pool import FeatureLoader, PooledLoader
from fedsam_pipeline.training.loss import segmentation_loss
from fedsam_pipeline.training.prefetch import prefetched
from fedsam_pipeline.training.proximal import proximal_term
from fedsam_pipeline.training.schedule import learning_rate
from fedsam_pipeline.training.slab_loader import Batch, SlabLoader

Encode = Callable[[Tensor], Tensor]
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class RunSchedule:
    """What decides the course of a whole run."""

    rounds: int
    local_steps: int
    peak_learning_rate: float
    seed: int


@dataclass(frozen=True)
class RoundResult:
    """What one site's round gave."""

    loss: float
    """mean over the steps"""
    last_learning_rate: float
    seconds: float
    data_seconds: float
    """of them, waiting for slabs, and computing features that are kept"""


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite."""


class LocalTrainer:
    """Optimizer steps on one site's slabs.

    Args:
        adapted: the model; its trained tensors are changed in place.
        loader: the site's slabs.
        plans: the plan.
        recipe: the recipe.
        device: where the model is.
        micro_batch: images that go through the network at once, whole slabs where slices mix; ``None``: all of a step. Gradients are
            those of the whole batch.
        feature_folder: where a recipe with ``[cache]`` keeps what the frozen part of the encoder makes of its pool of slabs; ``None``
            computes it anew at every step.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        loader: SlabLoader,
        plans: Plans,
        recipe: Recipe,
        device: torch.device,
        *,
        micro_batch: int | None = None,
        feature_folder: Path | None = None,
    ) -> None:
        self._adapted, self._plans, self._recipe, self._device = adapted, plans, recipe, device
        self._slabs, self._feature_folder = loader, feature_folder
        self._autocast = autocast_dtype(device)
        self._micro_batch = micro_batch or plans.training.effective_batch
        parameters = dict(adapted.model.named_parameters())
        self._parameters = {name: parameters[name] for name in adapted.manifest.trained_names}
        optimizer = recipe.optimizer
        by_factor: dict[float, list[Tensor]] = {}
        for name, parameter in self._parameters.items():
            by_factor.setdefault(optimizer.rate_factor(name), []).append(parameter)
        groups = [{"params": members, "factor": factor} for factor, members in by_factor.items()]
        self._optimizer = torch.optim.AdamW(groups, lr=1.0, betas=optimizer.betas, weight_decay=optimizer.weight_decay, fused=True)

    def optimizer_state(self) -> dict[str, Tensor]:
        """Copies of the optimizer's moments, keys ``exp_avg/NAME``, ``exp_avg_sq/NAME``, ``step/NAME``; empty before the first step."""
        return {
            f"{moment}/{name}": self._optimizer.state[parameter][moment].clone()
            for name, parameter in self._parameters.items()
            if parameter in self._optimizer.state
            for moment in _MOMENTS
        }

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Takes over moments that ``optimizer_state`` gave; an empty state starts afresh."""
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            if f"step/{name}" in state:
                self._optimizer.state[parameter] = {
                    moment: state[f"{moment}/{name}"].to(parameter.device, copy=True) for moment in _MOMENTS
                }

    def train_round(
        self,
        schedule: RunSchedule,
        *,
        round_number: int,
        site: str,
        proximal_mu: float = 0.0,
        frozen: Collection[str] = (),
        on_step: Callable[[int], None] | None = None,
    ) -> RoundResult:
        """Takes ``schedule.local_steps`` optimizer steps.

        Args:
            schedule: of the whole run.
            round_number: from 1.
            site: name of the site; part of the seed.
            proximal_mu: strength of the pull towards the federated tensors as they are now (FedProx); 0 for none.
            frozen: names of trained tensors that keep their values in this round; their moments stay as they are.
            on_step: called after each step.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        model = self._adapted.model.train()
        federated = {entry.name for entry in self._adapted.manifest.federated}
        received = {name: p.detach().clone() for name, p in self._parameters.items() if name in federated} if proximal_mu else {}
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name not in frozen)
        total, rate = 0.0, 0.0
        started = time.perf_counter()
        loader, encode = self._source
        batch_of = loader.of_round(schedule.seed, round_number, site, schedule.local_steps)
        pinned = self._device.type == "cuda"
        with prefetched(lambda step: batch_of(step).pinned() if pinned else batch_of(step), schedule.local_steps) as batches:
            waited = time.perf_counter() - started
            for step in range(schedule.local_steps):
                before = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - before
                rate = learning_rate(
                    schedule.peak_learning_rate,
                    self._recipe.schedule,
                    round_number=round_number,
                    step=step,
                    rounds=schedule.rounds,
                    local_steps=schedule.local_steps,
                )
                total += self._step(batch, encode, rate, received, proximal_mu)
                if on_step is not None:
                    on_step(step)
        model.eval()
        for parameter in self._parameters.values():
            parameter.requires_grad_()
        return RoundResult(total / schedule.local_steps, rate, time.perf_counter() - started, waited)

    @cached_property
    def _source(self) -> tuple[SlabLoader | PooledLoader | FeatureLoader, Encode]:
        """Where batches come from, and what makes embeddings of their images."""
        cache, encode = self._recipe.cache, self._adapted.model.encode
        if cache is None:
            return self._slabs, encode
        if self._feature_folder is None:
            return PooledLoader(self._slabs, cache), encode
        split = EncoderSplit(self._adapted.model, self._adapted.manifest.trained_names)
        loader = FeatureLoader(self._slabs, cache, split, self._plans, self._feature_folder, self._device, self._autocast)
        return loader, split.after

    def _step(self, batch: Batch, encode: Encode, rate: float, received: dict[str, Tensor], proximal_mu: float) -> float:
        """One optimizer step, pulled towards ``received`` where there is any; the loss before it, without the pull."""
        labels = batch.labels.to(self._device, non_blocking=True)
        annotated = None if batch.annotated is None else batch.annotated.to(self._device, non_blocking=True)
        parts = [partial(self._forward, encode, images, prompts) for images, prompts in self._parts(batch)]
        # what the loss needs of the whole batch are its logits; all parts but the last are computed again for their gradients
        with torch.no_grad():
            earlier = [forward() for forward in parts[:-1]]
        last = logits = parts[-1]()
        if earlier:
            logits = torch.cat([*earlier, last.detach()]).requires_grad_()
        loss = segmentation_loss(logits, labels, self._recipe.loss, annotated)
        value = loss.item()
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"the training loss became {value}; lower the learning rate")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if earlier:
            assert logits.grad is not None
            *gradients, of_last = logits.grad.split(self._micro_batch)  # type: ignore[no-untyped-call]
            last.backward(of_last)  # type: ignore[no-untyped-call]
            del last  # what it kept makes room for the next part's
            for forward, gradient in zip(parts[:-1], gradients, strict=True):
                forward().backward(gradient)  # type: ignore[no-untyped-call]
        if received:
            proximal_term(self._parameters, received, proximal_mu).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._recipe.optimizer.gradient_clip)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self._optimizer.step()
        return value

    def _parts(self, batch: Batch) -> list[tuple[Tensor, Prompts | None]]:
        """What goes through the network at once: images (N, 3, H, W), or features of them, with their prompts."""
        images = batch.images.to(self._device, non_blocking=True)
        prompts = None if batch.prompts is None else batch.prompts.to(self._device)
        rows = (slice(at, at + self._micro_batch) for at in range(0, len(images), self._micro_batch))
        return [(images[part], None if prompts is None else prompts.rows(part)) for part in rows]

    def _forward(self, encode: Encode, images: Tensor, prompts: Prompts | None) -> Tensor:
        """Logits (N, K, H, W) of what ``encode`` takes."""
        with torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None):
            return self._adapted.model.decode(encode(images), prompts)
