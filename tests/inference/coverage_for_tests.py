"""A coverage with round numbers."""

from typing import Any

from fedsam_pipeline.specs.coverage import Coverage


def make_coverage(**changes: Any) -> Coverage:
    """Of one channel, MR, with foreground from 50 to 150 and from 1000 to 2000; ``changes`` replaces keys."""
    values: dict[str, Any] = {
        "fingerprint_sha256": "0" * 64,
        "num_cases": 20,
        "foreground_share": 1.0,
        "spacing": ((0.8, 1.2), (1.0, 1.0), (1.0, 1.0)),
        "extent": ((5.0, 20.0), (8.0, 20.0), (8.0, 20.0)),
        "channels": ({"name": "MR", "spans": ((50.0, 150.0), (1000.0, 2000.0))},),
    }
    return Coverage.model_validate(values | changes)
