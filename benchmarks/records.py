"""What a benchmark found, kept as a line of JSON."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsam_pipeline.cores import usable_cores

RESULTS = Path(__file__).parent / "results"


def keep(path: Path, record: Mapping[str, Any]) -> None:
    """Appends ``record`` to ``path``, which is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def machine() -> dict[str, str | int]:
    """Architecture and cores, of a line."""
    return {"machine": platform.machine(), "cores": usable_cores()}
