"""What made the masks of a folder, so that a prediction that was interrupted is continued by the same models only."""

from pathlib import Path
from typing import Literal

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.document import Document
from fedsam_pipeline.specs.postprocessing import MaskRule

RECORD_FILE = "prediction.json"


class PredictionRecord(Document):
    """``prediction.json`` beside the masks: all that decides them but the images."""

    schema_version: Literal[1] = 1
    plan_sha256: str
    adapters_sha256: tuple[str, ...]
    """of the folds, in their order"""
    mirror_axes: tuple[int, ...]
    step_size: float
    prompts_sha256: str | None = None
    """of the content of the file of prompts"""
    self_prompt: bool = False
    postprocessing: tuple[MaskRule, ...] = ()
    """what was applied to the masks, in order; saved probabilities are without it"""

    def made(self, path: Path) -> bool:
        """Whether the file says that the masks beside it were made in this way; ``False`` where it is missing or says nothing."""
        try:
            return PredictionRecord.load(path).to_dict() == self.to_dict()
        except FedsamError:
            return False

    def check(self, path: Path, *, masks: bool) -> None:
        """Refuses to continue what was made in another way.

        Args:
            path: of the file.
            masks: whether some of the masks to make are there.

        Raises:
            FedsamError: the file says that the masks beside it were made otherwise, or is broken; or there are masks and no file.
        """
        if not path.is_file():
            if masks:
                raise FedsamError(
                    "nothing says how the masks of this folder were predicted",
                    path=path,
                    expected=f"the {RECORD_FILE} that fedsam_predict writes",
                    fix="predict into another folder, or leave --continue_prediction out to make all masks anew",
                )
            return
        found, wanted = PredictionRecord.load(path, fix="predict into another folder").to_dict(), self.to_dict()
        differing = [name for name in wanted if found[name] != wanted[name]]
        if differing:
            raise FedsamError(
                "the masks of this folder were predicted in another way",
                path=path,
                found="; ".join(f"{name} {found[name]}" for name in differing),
                expected="; ".join(f"{name} {wanted[name]}" for name in differing),
                fix="predict into another folder, or leave --continue_prediction out to make all masks anew",
            )
