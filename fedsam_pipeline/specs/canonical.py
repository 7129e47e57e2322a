"""Canonical JSON: the one byte sequence of a value, so that two sites can agree on a hash."""

import hashlib
import json
import math
from typing import Any

SIGNIFICANT_DIGITS = 9


def round_float(value: float) -> float:
    """``value`` at nine significant digits. Raises ``ValueError`` for NaN and infinity."""
    if not math.isfinite(value):
        raise ValueError(f"canonical JSON holds finite numbers only, found {value}")
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0  # "+ 0.0" turns -0.0 into 0.0


def canonical(value: Any) -> Any:
    """``value`` with every float rounded and every mapping's keys turned to sorted strings."""
    if isinstance(value, float):
        return round_float(value)
    if isinstance(value, dict):
        return {str(key): canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return value


def canonical_json(value: Any) -> str:
    """Canonical JSON text: sorted keys, no spaces, floats at nine significant digits."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()
