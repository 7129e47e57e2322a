"""Many images through one ensemble: the next image is read and the last mask is written while one is predicted."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.image_files import voxels_of
from fedsam_pipeline.dataset.volume import Volume, read_image
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.agreement import CaseAgreement
from fedsam_pipeline.inference.coverage_check import ImageView
from fedsam_pipeline.inference.ensemble import FoldPredictors, gives_probabilities, stream_ensemble
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.inputs import InputCase
from fedsam_pipeline.inference.memory_budget import BatchSizes, reading_bytes, set_batch_sizes, slice_cost, used_memory
from fedsam_pipeline.inference.patient_prompts import volume_prompts
from fedsam_pipeline.inference.probabilities import probabilities_path, write_probabilities
from fedsam_pipeline.inference.self_prompts import stream_self_prompted
from fedsam_pipeline.pipeline.mask_files import MaskFiles
from fedsam_pipeline.pipeline.quality_control import QualityControl
from fedsam_pipeline.postprocessing.apply import apply_rules
from fedsam_pipeline.preprocessing.preprocess import preprocess_image
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.postprocessing import MaskRule
from fedsam_pipeline.specs.prompts import ClassPrompts, PromptsFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadCase:
    """One image as the model wants it."""

    image: NDArray[np.float32]
    properties: CaseProperties
    geometry: Geometry
    view: ImageView | None = None
    """for quality control, where it looks on"""


@dataclass(frozen=True)
class Outputs:
    """What is written of each case.

    Attributes:
        masks: writes them.
        quality: looks on, and writes what it saw.
        save_probabilities: write them beside the masks, too.
    """

    masks: MaskFiles
    quality: QualityControl
    save_probabilities: bool = False


def prepare(volume: Volume, plans: Plans, case: str, quality: QualityControl | None = None) -> ReadCase:
    """Preprocesses an image that was read; errors as ``preprocess_image``."""
    image, properties = preprocess_image(volume, plans, case=case)
    return ReadCase(image, properties, volume.geometry, None if quality is None else quality.look(volume, properties))


class CasePredictor:
    """Predicts cases one after the other.

    Args:
        predictors: the folds and views; their batch sizes are set for each case.
        plans: of all folds.
        max_memory: bytes of main memory that this process may use; what does not fit is done in smaller portions, and images are read
            ahead only where both fit. ``None``: no limit.
        self_prompt: go through the model twice, see ``stream_self_prompted``.
        postprocessing: rules for the masks, in order; probabilities are written without.
    """

    def __init__(
        self,
        predictors: FoldPredictors,
        plans: Plans,
        *,
        max_memory: int | None,
        self_prompt: bool,
        postprocessing: Sequence[MaskRule] = (),
    ) -> None:
        self._predictors = predictors
        self._plans = plans
        self._max_memory = max_memory
        self._self_prompt = self_prompt
        self._postprocessing = postprocessing
        self._most_slices = predictors.views[0].batch_slices
        self._cost = slice_cost(predictors.views[0])  # of all views alike: their images have one size
        self._ahead: Future[ReadCase] | None = None

    def run(self, cases: Sequence[InputCase], outputs: Outputs, prompts: PromptsFile | None = None) -> dict[str, str]:
        """Writes the mask of every case.

        Args:
            cases: the images, and where their masks go.
            outputs: what is written of them.
            prompts: of some of them.

        Returns:
            Case to the reason why it failed, in the order of ``cases``.

        Raises:
            Exception: the error of an only case.
        """
        failures: dict[str, str] = {}
        self._ahead = None  # an earlier call that was interrupted may have read one
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]"
        with (
            ThreadPoolExecutor(1, "read") as reader,
            ThreadPoolExecutor(1, "write") as writer,
            tqdm(total=len(cases), desc="predicting", disable=None, bar_format=layout) as bar,
        ):
            writing: Future[None] = Future()
            writing.set_result(None)  # nothing to wait for yet
            for number, (case, following) in enumerate(zip_longest(cases, cases[1:]), start=1):
                started, place = time.perf_counter(), f"[{number}/{len(cases)}] {case.case}"
                try:
                    marked = {} if prompts is None else prompts.of(case.case)
                    mask, geometry = self._predict(case, following, reader, outputs, marked, bar.update)
                    wait([writing])  # one mask at most is written meanwhile
                    writing = writer.submit(outputs.masks.write, case, mask, geometry)
                except Exception as error:
                    if len(cases) == 1:
                        raise
                    _note_failure(case, place, failures, error)
                else:
                    writing.add_done_callback(partial(_note_writing, case, place, started, failures))
                bar.update(number - bar.n)  # also after a failure half-way, and free of rounding
        if len(cases) == 1:
            writing.result()
        return {case.case: failures[case.case] for case in cases if case.case in failures}

    def sizes(self, ready: ReadCase) -> BatchSizes:
        """Chooses and sets the portions in which an image goes through the model, by the memory that is free now."""
        return set_batch_sizes(self._predictors.views, self._cost, ready.properties, self._max_memory, used_memory(), self._most_slices)

    def segment(
        self,
        ready: ReadCase,
        sizes: BatchSizes,
        scratch: Path,
        prompts: Mapping[str, ClassPrompts],
        probabilities: Path | None,
        on_progress: Callable[[float], object] | None = None,
        agreement: CaseAgreement | None = None,
    ) -> NDArray[np.unsignedinteger]:
        """All that happens to an image between reading and writing, for ``fedsam_predict`` and for whoever calls ``Segmenter``.

        Args:
            ready: the image.
            sizes: see ``sizes``.
            scratch: folder for what does not stay in memory.
            prompts: class name to prompts, LPS, mm.
            probabilities: file to write them to; ``None``: none.
            on_progress, agreement: as in ``stream_ensemble``.

        Returns:
            (Z, Y, X) class numbers on the image's own grid.

        Raises:
            FedsamError: a prompt lies outside the image, or the disk lacks the space.
        """
        marked = volume_prompts(prompts, ready.properties, self._plans)
        if self._self_prompt:
            parts = stream_self_prompted(self._predictors, ready.image, scratch, self._plans, on_progress, marked, agreement=agreement)
        else:
            parts = stream_ensemble(self._predictors, ready.image, scratch, on_progress, marked, agreement=agreement)
        if probabilities is None:
            mask = export_stream(parts, ready.properties, self._plans)
        else:
            are_logits = not gives_probabilities(self._predictors)
            with write_probabilities(
                probabilities, ready.properties, self._plans.labels, are_logits=are_logits, depth=sizes.native_slices
            ) as sink:
                mask = export_stream(parts, ready.properties, self._plans, sink)
        return apply_rules(mask, ready.geometry.spacing, self._postprocessing, self._plans.labels)

    def _predict(
        self,
        case: InputCase,
        following: InputCase | None,
        reader: ThreadPoolExecutor,
        outputs: Outputs,
        prompts: Mapping[str, ClassPrompts],
        on_progress: Callable[[float], object],
    ) -> tuple[NDArray[np.unsignedinteger], Geometry]:
        """The mask of a case, while the next one is read."""
        reading, self._ahead = self._ahead or reader.submit(self._read, case, outputs), None
        ready = reading.result()
        sizes = self.sizes(ready)
        self._warn_of(case, sizes)
        if following is not None and self._fits_beside(following, sizes):
            self._ahead = reader.submit(self._read, following, outputs)
        probabilities = probabilities_path(case.output, case.case) if outputs.save_probabilities else None
        agreement = outputs.quality.watch(self._predictors.num_folds, len(self._predictors.views[-1].mirrorings))
        mask = self.segment(ready, sizes, case.output.parent, prompts, probabilities, on_progress, agreement)
        assert ready.view is not None  # of an image that was read for these outputs
        outputs.quality.note(case, ready.view, agreement, mask)
        return mask, ready.geometry

    def _read(self, case: InputCase, outputs: Outputs) -> ReadCase:
        volume = read_image(case.channels)
        outputs.masks.check(case)
        return prepare(volume, self._plans, case.case, outputs.quality)

    def _fits_beside(self, case: InputCase, sizes: BatchSizes) -> bool:
        """Whether the image may be read while another one is predicted."""
        if self._max_memory is None:
            return True
        voxels = [voxels_of(path) for path in case.channels]
        if None in voxels:
            return False  # not known before it is read
        return used_memory() + sizes.needed + reading_bytes(sum(number or 0 for number in voxels)) <= self._max_memory

    def _warn_of(self, case: InputCase, sizes: BatchSizes) -> None:
        if self._max_memory is not None and used_memory() + sizes.needed > self._max_memory:
            log.warning(
                "%s: needs about %.1f GB, --max_memory is %.1f GB; done in the smallest portions",
                case.case,
                (used_memory() + sizes.needed) / 1e9,
                self._max_memory / 1e9,
            )


def _note_writing(case: InputCase, place: str, started: float, failures: dict[str, str], result: Future[None]) -> None:
    error = result.exception()
    if error is None:
        log.info("%s: %.1f s -> %s", place, time.perf_counter() - started, case.output)
    else:
        _note_failure(case, place, failures, error)


def _note_failure(case: InputCase, place: str, failures: dict[str, str], error: BaseException) -> None:
    """Keeps what the error says, not the error: its frames hold volumes."""
    failures[case.case] = str(error)
    log.error("%s FAILED: %s", place, error, exc_info=None if isinstance(error, FedsamError) else error)
