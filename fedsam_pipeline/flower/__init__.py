"""All that knows Flower.

Nothing calls home and nothing is installed at run time: telemetry, update checks, the installation of an app's dependencies and Ray's usage
statistics are off unless the user's environment turns them on. Flower reads these variables when it is imported, so they are set before any
module of this folder imports it; processes that our commands start inherit them.
"""

import os

QUIET_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""what keeps Flower 1.41 and Ray to themselves; the start-up kit writes the same into its environment files"""

for _variable, _value in (*QUIET_ENVIRONMENT.items(), ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")):
    os.environ.setdefault(_variable, _value)
