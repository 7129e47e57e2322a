"""What the values of predicted masks are called: nnU-Net's ``dataset.json``, from the trained fold and beside the masks.

nnU-Net v2 copies the ``dataset.json`` of its model into the folder of predictions, where its evaluation reads it. Ours says what the masks
need and no more: the one of a trained fold also names cases and patients, which no mask is to carry along.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsam_pipeline.dataset.label_scheme import LabelScheme, read_label_scheme
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.specs.bundle_index import DATASET_FILE
from fedsam_pipeline.specs.plans import Plans

LABEL_KEYS = ("labels", "regions_class_order")
DESCRIPTION = "Label values of the predicted masks beside this file."
"""marks a file as ours, to be replaced when other masks are predicted"""


def label_content(fold: Path, plans: Plans) -> dict[str, Any]:
    """``channel_names``, ``labels`` and, with regions, ``regions_class_order``, as nnU-Net writes them.

    Args:
        fold: a trained fold. Without ``dataset.json`` (folds of old bundles) the labels are the classes of the plan.
        plans: its plan.

    Raises:
        FedsamError: the fold's ``dataset.json`` is broken, or its labels are not those of the plan.
    """
    path = fold / DATASET_FILE
    fix = "train again, or copy the whole model folder again"
    found = read_json(path, fix=fix) if path.is_file() else {"labels": dict(plans.labels)}
    if not isinstance(found, dict) or "labels" not in found:
        raise FedsamError("the dataset.json of a trained fold has no labels", path=path, expected="the one that training wrote", fix=fix)
    scheme = read_label_scheme(found, path)
    if scheme.classes != plans.labels:
        raise FedsamError(
            "the labels of a trained fold are not those of its plan", path=path, found=scheme.classes, expected=plans.labels, fix=fix
        )
    channels = {str(number): channel.name for number, channel in enumerate(plans.channels)}
    return {"channel_names": channels} | _labels_of(found, scheme)


def copied_content(folders: Sequence[Path]) -> dict[str, Any] | None:
    """What the first of these folders of masks that has a ``dataset.json`` says of its labels; ``None`` where none has one.

    Raises:
        FedsamError: the file is broken, or has no usable labels.
    """
    path = next((folder / DATASET_FILE for folder in folders if (folder / DATASET_FILE).is_file()), None)
    if path is None:
        return None
    fix = f"predict again, or delete this {DATASET_FILE}"
    found = read_json(path, fix=fix)
    if not isinstance(found, dict) or "labels" not in found:
        raise FedsamError("a dataset.json beside masks has no labels", path=path, expected="the one that fedsam_predict wrote", fix=fix)
    channels = {key: found[key] for key in ("channel_names",) if key in found}
    return channels | _labels_of(found, read_label_scheme(found, path))


def _labels_of(found: dict[str, Any], scheme: LabelScheme) -> dict[str, Any]:
    """The keys that say what a mask's values mean, and no other."""
    return {"labels": found["labels"]} | ({"regions_class_order": found["regions_class_order"]} if scheme.regions else {})


@dataclass(frozen=True)
class LabelFile:
    """The ``dataset.json`` beside the masks of a folder, or ``MASK.json`` beside a single mask.

    Args:
        path: of the file.
        content: as ``label_content``.
        ending: of the masks; ``None`` where they have several.
    """

    path: Path
    content: dict[str, Any]
    ending: str | None

    @property
    def scheme(self) -> LabelScheme:
        """What the values mean."""
        return read_label_scheme(self.content, self.path)

    def check(self) -> None:
        """Refuses to replace a file of somebody else's.

        Raises:
            FedsamError: there is one that says something else.
        """
        if self.path.exists() and not self._says_the_same() and not self._is_ours():
            raise FedsamError(
                "another file stands where the labels of the masks are to be written",
                path=self.path,
                expected="no such file, or one with the labels of this model",
                fix="choose another folder for -o, or move this file away",
            )

    def write(self) -> None:
        """Writes the file, unless one is there that names the same labels."""
        if not self.path.exists() or not self._says_the_same():
            ending = {} if self.ending is None else {"file_ending": self.ending}
            write_json(self.path, {"description": DESCRIPTION} | self.content | ending)

    def _says_the_same(self) -> bool:
        found = self._found()
        return all(found.get(key) == self.content.get(key) for key in LABEL_KEYS)

    def _is_ours(self) -> bool:
        return self._found().get("description") == DESCRIPTION

    def _found(self) -> dict[str, Any]:
        found = read_json(self.path, fix="choose another folder for -o, or move this file away")
        return found if isinstance(found, dict) else {}
