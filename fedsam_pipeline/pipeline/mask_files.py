"""Predicted masks as files: the format of each, and the names of their classes."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.dicom_seg import Algorithm, check_segment_names, check_series, require_highdicom, write_segmentation
from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import write_labels
from fedsam_pipeline.inference.inputs import InputCase, mask_ending
from fedsam_pipeline.inference.label_names import LabelFile
from fedsam_pipeline.inference.record import PredictionRecord
from fedsam_pipeline.model.bundle_zip import DISTRIBUTION
from fedsam_pipeline.specs.bundle_index import DATASET_FILE
from fedsam_pipeline.specs.plans import Plans


class MaskFiles:
    """Writes the masks of one prediction, in the formats that their names ask for.

    Args:
        plans: the plan of the model.
        labels: what its masks mean, as ``label_content`` says.
        record: what decides the masks.
        cases: all images, in whatever part they are predicted.
        target: folder of the masks, or the one mask.

    Raises:
        FedsamError: DICOM Segmentations are asked for and the extra is not installed or a class name is no segment's label; or another
            file stands where the label names are to be written.
    """

    def __init__(self, plans: Plans, labels: dict[str, Any], record: PredictionRecord, cases: Sequence[InputCase], target: Path) -> None:
        endings = {mask_ending(case.output) for case in cases}
        single = mask_ending(target)
        path = target / DATASET_FILE if single is None else target.with_name(f"{target.name[: -len(single)]}.json")
        self._label_file = LabelFile(path, labels, endings.pop() if len(endings) == 1 else None)
        self._scheme = self._label_file.scheme
        self._needs_label_file = single is None or not cases[0].is_dicom_seg
        self._dataset_name = plans.dataset_name
        self._algorithm = Algorithm(
            name=DISTRIBUTION,
            version=version(DISTRIBUTION),
            serial_number=record.plan_sha256,
            parameters={"plan_sha256": record.plan_sha256, "adapters_sha256": " ".join(record.adapters_sha256)},
        )
        if any(case.is_dicom_seg for case in cases):
            require_highdicom()
            check_segment_names(list(self._scheme.scored))
        if self._needs_label_file:
            self._label_file.check()

    def write_label_names(self) -> None:
        """Writes the names beside the masks; a single DICOM Segmentation holds them itself."""
        if self._needs_label_file:
            self._label_file.write()

    def check(self, case: InputCase) -> None:
        """Before a case is predicted; ``FedsamError`` where its mask could not be written afterwards."""
        if case.is_dicom_seg:
            check_series(case.channels[0])

    def write(self, case: InputCase, mask: NDArray[np.unsignedinteger], geometry: Geometry) -> None:
        """Writes the mask of a case, atomically.

        Args:
            case: with the path of its mask.
            mask: (Z, Y, X), class numbers.
            geometry: the grid of the image.

        Raises:
            FedsamError: see ``write_labels`` and ``write_segmentation``.
        """
        if not case.is_dicom_seg:
            write_labels(case.output, mask, geometry, case.channels[0], self._scheme.classes)
            return
        write_segmentation(
            case.output,
            mask,
            geometry,
            case.channels,
            self._scheme.scored,
            self._algorithm,
            description=f"Segmentation, {self._dataset_name}",
        )
