"""What a site keeps of a run on its own disk, and what a run that begins anew removes of it."""

from pathlib import Path

from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.flower.kept_masks import KeptMasks
from fedsam_pipeline.flower.site_encryption import NOTE_FILE
from fedsam_pipeline.flower.site_worker import FEATURES_FOLDER, PERSONAL_FOLDER
from fedsam_pipeline.model.trained_files import BUNDLE_FILE
from fedsam_pipeline.training.feature_pool import FILE_NAME

_FILES = ("validation.json", "validation_shared.json", f"{PERSONAL_FOLDER}/{BUNDLE_FILE}", f"{FEATURES_FOLDER}/{FILE_NAME}", NOTE_FILE)


def clear_site(folder: Path) -> None:
    """Removes states, scores, masks, features and the personal model from ``sites/SITE``. The audit trail and the logs stay."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    KeptMasks(folder).clear()
    CheckpointSeries(folder, "state_r").clear()
