"""Many images through one ensemble: the next image is read and the last mask is written while one is predicted."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.image_files import voxels_of
from fedsam_pipeline.dataset.volume import read_image, write_labels
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.ensemble import FoldPredictors, gives_probabilities, stream_ensemble
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.inputs import InputCase
from fedsam_pipeline.inference.memory_budget import BatchSizes, reading_bytes, set_batch_sizes, slice_cost, used_memory
from fedsam_pipeline.inference.probabilities import probabilities_path, write_probabilities
from fedsam_pipeline.preprocessing.preprocess import preprocess_image
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import Plans

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadCase:
    """One image as the model wants it."""

    image: NDArray[np.float32]
    properties: CaseProperties
    geometry: Geometry


class CasePredictor:
    """Predicts cases one after the other.

    Args:
        predictors: the folds and views; their batch sizes are set for each case.
        plans: of all folds.
        save_probabilities: write them beside the masks, too.
        max_memory: bytes of main memory that this process may use; what does not fit is done in smaller portions, and images are read
            ahead only where both fit. ``None``: no limit.
    """

    def __init__(self, predictors: FoldPredictors, plans: Plans, *, save_probabilities: bool, max_memory: int | None) -> None:
        self._predictors = predictors
        self._plans = plans
        self._save_probabilities = save_probabilities
        self._max_memory = max_memory
        self._most_slices = predictors.views[0].batch_slices
        self._cost = slice_cost(predictors.views[0])  # of all views alike: their images have one size
        self._ahead: Future[ReadCase] | None = None

    def run(self, cases: Sequence[InputCase]) -> dict[str, str]:
        """Writes the mask of every case.

        Returns:
            Case to the reason why it failed, in the order of ``cases``.

        Raises:
            Exception: the error of an only case.
        """
        failures: dict[str, str] = {}
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
                    mask, geometry = self._predict(case, following, reader, bar.update)
                    wait([writing])  # one mask at most is written meanwhile
                    writing = writer.submit(write_labels, case.output, mask, geometry, case.channels[0])
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

    def _predict(
        self, case: InputCase, following: InputCase | None, reader: ThreadPoolExecutor, on_progress: Callable[[float], object]
    ) -> tuple[NDArray[np.unsignedinteger], Geometry]:
        """The mask of a case, while the next one is read."""
        reading, self._ahead = self._ahead or reader.submit(self._read, case), None
        ready = reading.result()
        views, limit = self._predictors.views, self._max_memory
        sizes = set_batch_sizes(views, self._cost, ready.properties, limit, used_memory(), self._most_slices)
        self._warn_of(case, sizes)
        if following is not None and self._fits_beside(following, sizes):
            self._ahead = reader.submit(self._read, following)
        parts = stream_ensemble(self._predictors, ready.image, case.output.parent, on_progress)
        if not self._save_probabilities:
            return export_stream(parts, ready.properties, self._plans), ready.geometry
        with write_probabilities(
            probabilities_path(case.output, case.case),
            ready.properties,
            self._plans.labels,
            are_logits=not gives_probabilities(self._predictors),
            depth=sizes.native_slices,
        ) as sink:
            return export_stream(parts, ready.properties, self._plans, sink), ready.geometry

    def _read(self, case: InputCase) -> ReadCase:
        volume = read_image(case.channels)
        image, properties = preprocess_image(volume, self._plans, case=case.case)
        return ReadCase(image, properties, volume.geometry)

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
