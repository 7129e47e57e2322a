"""What a run writes down round by round: ``progress.jsonl``, scores and losses, and ``communication.json``, bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsam_pipeline.files import append_text, read_json, write_json, write_text

PROGRESS_FILE, TRAFFIC_FILE = "progress.jsonl", "communication.json"


class RunRecords:
    """The two files of a run's folder."""

    def __init__(self, folder: Path) -> None:
        self._progress, self._traffic = folder / PROGRESS_FILE, folder / TRAFFIC_FILE

    @property
    def progress(self) -> list[dict[str, Any]]:
        """All records so far."""
        return [json.loads(line) for line in self._progress.read_text(encoding="utf-8").splitlines()]

    def add_progress(self, record: Mapping[str, Any]) -> None:
        """A round, or the end."""
        append_text(self._progress, json.dumps(record, allow_nan=False) + "\n")

    def add_traffic(self, entry: Mapping[str, Any]) -> None:
        """The bytes of one exchange."""
        document: dict[str, Any] = read_json(self._traffic) if self._traffic.exists() else {"schema_version": 1, "rounds": []}
        document["rounds"].append(entry)
        write_json(self._traffic, document)

    def forget_after(self, rounds_done: int) -> None:
        """Drops records of rounds that an interruption left without a checkpoint."""
        if self._progress.exists():
            lines = self._progress.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a power cut may leave half a line
            kept = [record for record in map(json.loads, whole) if record["event"] == "round" and record["round"] <= rounds_done]
            write_text(self._progress, "".join(json.dumps(record) + "\n" for record in kept))
        if self._traffic.exists():
            document = read_json(self._traffic)
            document["rounds"] = [e for e in document["rounds"] if e["message"] == "train.round" and e["round"] <= rounds_done]
            write_json(self._traffic, document)
