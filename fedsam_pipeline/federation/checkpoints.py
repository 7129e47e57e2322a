"""Checkpoints of a run: whole folders, written aside and renamed, hash checked when read, the last ones kept.

The server's are ``checkpoints/round_NNNN``; a site's own (optimizer moments, tensors that never travel) are ``sites/SITE/state_rNNNN``.
"""

import logging
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import make_folder, read_json, sha256_file, write_json

log = logging.getLogger(__name__)
KEPT = 2
KEPT_AT_SITE = 3
"""one more than the server's: where that has lost its last one, every site still holds the state that the one before it goes on from"""
_TENSORS, _INFO = "tensors.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class CheckpointSeries:
    """Numbered checkpoints of one kind in one folder.

    Attributes:
        folder: where they are.
        prefix: of their names, followed by the round with four digits.
        kept: how many.
    """

    folder: Path
    prefix: str
    kept: int = KEPT

    def rounds(self) -> list[int]:
        """Rounds that have a checkpoint, ascending."""
        pattern = re.compile(rf"^{re.escape(self.prefix)}(\d{{4,}})$")
        if not self.folder.is_dir():
            return []
        return sorted(int(match.group(1)) for entry in self.folder.iterdir() if (match := pattern.match(entry.name)))

    def path(self, round_number: int) -> Path:
        """Folder of one round's checkpoint."""
        return self.folder / f"{self.prefix}{round_number:04d}"

    def save(self, round_number: int, tensors: dict[str, Tensor]) -> None:
        """Writes a checkpoint and deletes all but the last ones. An interrupted write leaves the earlier ones untouched.

        Raises:
            FedsamError: it cannot be written.
        """
        make_folder(self.folder)
        try:
            self._write(round_number, tensors)
        except (OSError, SafetensorError) as error:
            raise FedsamError(
                "a checkpoint cannot be written",
                path=self.path(round_number),
                found=str(error),
                expected="a disk with room, and a folder this user may write to",
                fix="free some room, or make the folder writable, and continue the run; the checkpoints before it are whole",
            ) from error

    def _write(self, round_number: int, tensors: dict[str, Tensor]) -> None:
        self._sweep()
        temporary = self.folder / f".tmp-{secrets.token_hex(4)}"
        try:
            temporary.mkdir()
            save_file({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, temporary / _TENSORS)
            digest = sha256_file(temporary / _TENSORS)
            write_json(temporary / _INFO, {"schema_version": 1, "round": round_number, "sha256": digest})
            target = self.path(round_number)
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in [number for number in self.rounds() if number <= round_number][: -self.kept]:  # of a site that was away, they lie apart
            shutil.rmtree(self.path(old))

    def clear(self) -> None:
        """Deletes all checkpoints, and what a kill left half-written."""
        self._sweep()
        for number in self.rounds():
            shutil.rmtree(self.path(number))

    def _sweep(self) -> None:
        for left in self.folder.glob(".tmp-*"):
            shutil.rmtree(left)

    def latest(self, before: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """The last checkpoint that can be read, of a round before ``before``; the log says which were passed over. ``None``: there is no
        folder of one.

        Raises:
            FedsamError: there are some, and none can be read.
        """
        fault: FedsamError | None = None
        for number in reversed([number for number in self.rounds() if before is None or number < before]):
            try:
                return number, self.load(number)
            except FedsamError as error:
                log.warning("round %d is passed over, the checkpoint before it is taken: %s", number, error)
                fault = fault or error
        if fault is not None:
            raise fault
        return None

    def load(self, round_number: int) -> dict[str, Tensor]:
        """Tensors of a round.

        Raises:
            FedsamError: missing, or its hash differs.
        """
        path = self.path(round_number)
        info = read_json(path / _INFO, fix="delete this folder; training then continues from the round before")
        expected = info.get("sha256") if isinstance(info, dict) else None
        try:
            found = sha256_file(path / _TENSORS)
            if expected == found:
                return load_file(path / _TENSORS)
        except (OSError, SafetensorError) as error:
            found = str(error)
        raise FedsamError(
            "a checkpoint is damaged",
            path=path,
            found=found,
            expected=f"SHA-256 {expected!s:.64}",
            fix="delete this folder; training then continues from the round before",
        )
