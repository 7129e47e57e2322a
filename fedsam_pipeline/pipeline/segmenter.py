"""Prediction for Python programs: one class, which ``fedsam_predict`` itself uses."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import Volume, read_image, write_labels
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.ensemble import FoldPredictors
from fedsam_pipeline.inference.inputs import InputCase
from fedsam_pipeline.inference.patient_prompts import check_prompts, require_prompted
from fedsam_pipeline.inference.probabilities import open_probabilities, probabilities_path
from fedsam_pipeline.inference.record import PredictionRecord
from fedsam_pipeline.inference.trained import common_plans, find_folds
from fedsam_pipeline.inference.view_predictors import view_predictors
from fedsam_pipeline.model.bundle import FoldModels
from fedsam_pipeline.model.compilation import compile_encoder
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.model.trained_files import BUNDLE_FILE, RETRAIN, BundleInfo
from fedsam_pipeline.pipeline.find_postprocessing import steps_of
from fedsam_pipeline.pipeline.predict_cases import CasePredictor, Outputs, prepare
from fedsam_pipeline.specs.prompts import ClassPrompts, PromptsFile

LPS_AXES = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
Triple = tuple[float, float, float]
_IMAGE = "image"
"""name of the only image, in messages"""


@dataclass(frozen=True)
class Segmentation:
    """The answer for one image.

    Attributes:
        mask: (Z, Y, X) class numbers on the image's own grid; uint8, uint16 beyond 256 classes.
        geometry: that grid.
        labels: class name to number, background 0 included.
        probabilities: (K, Z, Y, X) float16 on the same grid, where they were asked for.
    """

    mask: NDArray[np.unsignedinteger]
    geometry: Geometry
    labels: dict[str, int]
    probabilities: NDArray[np.float16] | None = None


class Segmenter:
    """A trained model, ready to segment arrays, files and folders of cases.

    What the model is, is read at once; base weights and adapters with the first image, and then kept. Not for several threads at a time.

    Args:
        model: trained run folder (``.../federated__fedavg__seed0``) or one of its folds.
        folds: fold names; ``None`` is all trained ones. Their class probabilities are averaged.
        device: ``auto``, ``cpu`` or ``cuda``.
        compiled: compile the image encoder when the model is loaded; masks stay the same but for rounding.
        test_time_augmentation: average over mirrored images.
        mirror_axes: of (slice, height, width); ``None``: those that training mirrored.
        step_size: of windows and slabs, as a share of their length; ``None``: as planned.
        max_memory: bytes of main memory to stay within where possible, at the cost of time; ``None``: no limit.
        self_prompt: predict twice, the second time with prompts made of what the first found; for models that were trained with prompts.
            ``None``: as planned.
        postprocessing: apply to masks what was chosen for the run, if anything; probabilities are without.

    Attributes:
        folds: the fold folders.
        plans: the plan they were trained with.
        device: where the model runs.

    Raises:
        FedsamError: no trained fold there, folds of different plans, no such device, or ``self_prompt`` of a model that takes no prompts.
    """

    def __init__(
        self,
        model: Path | str,
        *,
        folds: Sequence[str] | None = None,
        device: str = "auto",
        compiled: bool = False,
        test_time_augmentation: bool = True,
        mirror_axes: Sequence[int] | None = None,
        step_size: float | None = None,
        max_memory: int | None = None,
        self_prompt: bool | None = None,
        postprocessing: bool = True,
    ) -> None:
        self.folds = find_folds(Path(model), folds)
        self.plans = common_plans(self.folds)
        self.device: torch.device = choose_device(device)
        self._compiled = compiled
        axes = self.plans.training.mirror_axes if mirror_axes is None else mirror_axes
        self._mirror_axes = tuple(sorted(set(axes))) if test_time_augmentation else ()
        self._step_size = 1 - self.plans.window_overlap if step_size is None else step_size
        self._max_memory = max_memory
        self._self_prompt = self.plans.prompts.self_prompt if self_prompt is None else self_prompt
        self._postprocessing = steps_of(self.folds, self.plans) if postprocessing else ()
        if self._self_prompt:
            require_prompted(self.plans)

    @property
    def labels(self) -> dict[str, int]:
        """Class name to number, background 0 included."""
        return dict(self.plans.labels)

    def record(self, prompts: PromptsFile | None = None) -> PredictionRecord:
        """All that decides a mask but the image.

        Raises:
            FedsamError: ``bundle.json`` of a fold is missing or broken.
        """
        return PredictionRecord(
            plan_sha256=self.plans.sha256(),
            adapters_sha256=tuple(BundleInfo.load(fold / BUNDLE_FILE, fix=RETRAIN).adapter_sha256 for fold in self.folds),
            mirror_axes=self._mirror_axes,
            step_size=self._step_size,
            prompts_sha256=None if prompts is None else prompts.sha256(),
            self_prompt=self._self_prompt,
            postprocessing=self._postprocessing,
        )

    def predict_array(
        self,
        array: ArrayLike,
        spacing: Triple,
        *,
        origin: Triple = (0.0, 0.0, 0.0),
        direction: Sequence[float] = LPS_AXES,
        prompts: Mapping[str, Any] | None = None,
        probabilities: bool = False,
    ) -> Segmentation:
        """Segments an image in memory.

        Args:
            array: (Z, Y, X), or (C, Z, Y, X) with the channels in the model's order; left alone.
            spacing: mm, (z, y, x), as the array's axes.
            origin: mm, (x, y, z): centre of the first voxel.
            direction: 9 numbers, row-major 3x3, SimpleITK's: column i is the axis along which index i of (x, y, z) grows. As it is, x grows
                to the patient's left, y to posterior, z to superior.
            prompts: class name to what one class has in ``prompts.json``, such as ``{"liver": {"boxes": [[[0, 0, 0], [40, 30, 9]]]}}``;
                mm (x, y, z), LPS.
            probabilities: return them, too; they pass through a temporary file.

        Raises:
            FedsamError: the array has another number of channels than the model, or voxels that are not finite; the prompts do not fit.
            ValueError: no array of three or four axes, no positive spacing, or no right-angled direction.
        """
        image = np.array(array, dtype=np.float32)
        image = image[None] if image.ndim == 3 else image
        if image.ndim != 4 or not image.size:
            raise ValueError(f"an image is (Z, Y, X) or (C, Z, Y, X), not {np.shape(array)}")
        if len(spacing) != 3 or not all(np.isfinite(spacing)) or min(spacing) <= 0:
            raise ValueError(f"spacing is three lengths in mm (z, y, x), not {spacing}")
        bad = image.size - int(np.isfinite(image).sum())
        if bad:
            raise FedsamError("an image holds voxels that are not finite", found=f"{bad} of {image.size}", fix="replace them")
        z, y, x = image.shape[1:]
        geometry = Geometry((z, y, x), (spacing[0], spacing[1], spacing[2]), origin, tuple(map(float, direction)))
        if not geometry.is_orthonormal():
            raise ValueError(f"direction is a rotation, perhaps mirrored, not {tuple(direction)}")
        return self._segment(Volume(image, geometry), prompts, probabilities)

    def predict_image(
        self,
        channels: Path | str | Sequence[Path | str],
        output: Path | str | None = None,
        *,
        prompts: Mapping[str, Any] | None = None,
        probabilities: bool = False,
    ) -> Segmentation:
        """Segments one image on disk.

        Args:
            channels: a file, or one a channel in the model's order; a folder of DICOM slices is a file.
            output: where to write the mask, too; ``None``: nowhere. Its ending chooses the format.
            prompts, probabilities: as in ``predict_array``.

        Raises:
            FedsamError: a file cannot be read, the image or the prompts do not fit the model, or the mask cannot be written.
        """
        paths = [Path(channels)] if isinstance(channels, Path | str) else [Path(path) for path in channels]
        if output is not None and Path(output).resolve() in {path.resolve() for path in paths}:
            raise FedsamError("a mask would overwrite its image", path=output, fix="choose another output")
        found = self._segment(read_image(paths), prompts, probabilities)
        if output is not None:
            write_labels(Path(output), found.mask, found.geometry, paths[0], self.labels)
        return found

    def predict_cases(self, cases: Sequence[InputCase], outputs: Outputs, *, prompts: PromptsFile | None = None) -> dict[str, str]:
        """Segments many images on disk and writes their masks, as ``fedsam_predict`` does.

        Args:
            cases: of ``fedsam_pipeline.inference.inputs.find_cases``.
            outputs: what is written of each.
            prompts: of some of them, which fit (``check_prompts``).

        Returns:
            Case to the reason why it failed.

        Raises:
            FedsamError: the only case failed, or the model cannot be loaded.
        """
        return self._runner.run(cases, outputs, prompts)

    @cached_property
    def _runner(self) -> CasePredictor:
        models = FoldModels(self.folds, self.device)
        if self._compiled:
            compile_encoder(models.model, self.device)
        views = view_predictors(
            models.model,
            self.plans,
            models.configuration,
            self.device,
            autocast_dtype(self.device),
            mirror_axes=self._mirror_axes,
            step_size=self._step_size,
        )
        return CasePredictor(
            FoldPredictors(models, *views),
            self.plans,
            max_memory=self._max_memory,
            self_prompt=self._self_prompt,
            postprocessing=self._postprocessing,
        )

    def _segment(self, volume: Volume, prompts: Mapping[str, Any] | None, probabilities: bool) -> Segmentation:
        marked = self._checked(prompts) if prompts else {}
        ready = prepare(volume, self.plans, _IMAGE)
        with tempfile.TemporaryDirectory(prefix="fedsam_") as scratch:
            path = probabilities_path(Path(scratch) / _IMAGE, _IMAGE) if probabilities else None
            mask = self._runner.segment(ready, self._runner.sizes(ready), Path(scratch), marked, path)
            values = None if path is None else open_probabilities(path).array[:]
        return Segmentation(mask, ready.geometry, self.labels, values)

    def _checked(self, prompts: Mapping[str, Any]) -> dict[str, ClassPrompts]:
        given = {name: each.to_dict() if isinstance(each, ClassPrompts) else each for name, each in prompts.items()}
        file = PromptsFile.from_dict({"coordinates": "LPS", "cases": {_IMAGE: given}}, fix="see docs/formats.md, section 8")
        check_prompts(file, None, {_IMAGE}, self.plans, others=False)
        return file.of(_IMAGE)
