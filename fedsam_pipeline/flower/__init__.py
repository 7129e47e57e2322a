"""All that knows Flower.

Nothing calls home: telemetry, update checks and Ray's usage statistics are off unless the user's environment turns them on. Flower reads
these variables when it is imported, so they are set before any module of this folder imports it.
"""

import os

for _variable, _value in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
):
    os.environ.setdefault(_variable, _value)
