"""Sections about what was agreed on: the plan with its reasons, the method, the settings of the run."""

from collections.abc import Mapping
from typing import Any

from fedsam_pipeline.report.markup import Section, flatten, note, table, value
from fedsam_pipeline.report.run_files import RunFiles
from fedsam_pipeline.specs.plans import Plans

_AGREED = ("plan_sha256", "recipe_sha256", "weights_sha256", "cases_sha256", "start_sha256")
_RUN = ("status", "run_id", "protocol", "sites", "held_out", "fold", "strategy", "rounds", "local_steps", "peak_learning_rate", "seed")


def plan_section(plans: Plans) -> Section:
    """Every planned value beside its reason; values without a reason last."""
    planned = plans.model_dump(mode="json", exclude={"why", "schema_version", "fingerprint_sha256", "channels"})
    planned |= {f"channels.{number}": channel.model_dump(mode="json") for number, channel in enumerate(plans.channels)}
    flat = list(flatten(planned, whole=("labels", *(key for key in planned if key.startswith("channels.")))))
    rows = [[key, value(found), plans.why.get(key, "")] for key, found in flat]
    rows += [[key, "", why] for key, why in plans.why.items() if key not in dict(flat)]
    rows.sort(key=lambda row: row[2] == "")
    words = "Lengths in mm, axes (z, y, x). Values without a reason come from the dataset or from the base model."
    return Section("Plan, with its reasons", table("plans.json", ["value of", "is", "because"], rows, kind="keys") + note(words))


def method_section(files: RunFiles) -> Section:
    """What was trained and how, and the settings of this run."""
    recipe, manifest = files.recipe, files.manifest
    rows = [
        ["recipe", f"{recipe.name}: {recipe.title}"],
        ["paper", recipe.paper],
        ["base model", files.plans.base_model],
        ["trained parameters", f"{manifest.trained_parameters:,} in {len(manifest.tensors):,} tensors"],
    ]
    chosen = recipe.model_dump(mode="json", include={"lora", "adapter", "loss", "optimizer", "schedule", "aggregation"}, exclude_none=True)
    rows += [[key, value(found)] for key, found in flatten(chosen, whole=("optimizer.rate_factors", "aggregation.options"))]
    run = files.run
    settings = [[key, value(run[key])] for key in _RUN if key in run]
    settings += [[f"argument {key}", shown] for key, shown in _arguments(run)]
    settings += [[key, str(run[key])] for key in _AGREED if key in run]
    body = table("recipe.json and manifest.json", ["what", "value"], rows, kind="keys")
    return Section("Method and settings", body + table("run.json", ["what", "value"], settings, kind="keys"))


def _arguments(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flags that were given and do not only repeat what the run is; of a path only its name, because folders name people and machines."""
    shown = []
    for key, found in (run.get("arguments") or {}).items():
        if not found or found == run.get(key):
            continue
        shown.append((key, found.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if isinstance(found, str) else value(found)))
    return shown
