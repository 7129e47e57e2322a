"""Nothing calls home and nothing is installed at run time, unless the user's environment says so."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsam_pipeline.flower import QUIET_ENVIRONMENT

ROOT = Path(__file__).parents[2]
CODE = """
import fedsam_pipeline.flower, os, sys
from flwr.supercore import telemetry, update_check
from flwr.superlink.cli import flower_superlink
asked = []
update_check.requests.post = lambda *_, **__: asked.append("update")
update_check.warn_if_flwr_update_available("flwr")
parser = sys.modules[flower_superlink.__module__]._parse_args_run_superlink()
print(telemetry.FLWR_TELEMETRY_ENABLED, asked, parser.parse_args([]).runtime_dependency_install, os.environ["RAY_USAGE_STATS_ENABLED"])
"""


def seen(**changes: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in QUIET_ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment | changes, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_flower_and_ray_are_quiet() -> None:
    assert seen() == "0 [] False 0"


def test_the_users_environment_has_the_last_word() -> None:
    assert seen(FLWR_TELEMETRY_ENABLED="1", RAY_USAGE_STATS_ENABLED="1") == "1 [] False 1"


@pytest.mark.parametrize("folder", ["fedsam_pipeline", "entrypoints"])
def test_no_module_imports_flower_before_the_room_that_silences_it(folder: str) -> None:
    """Python imports a package before its modules, so it is enough that only modules of that package name Flower or Ray."""
    for path in (ROOT / folder).rglob("*.py"):
        modules = [
            name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        ]
        named = {module.split(".")[0] for module in modules} & {"flwr", "ray"}
        assert not named or path.is_relative_to(ROOT / "fedsam_pipeline" / "flower"), path
