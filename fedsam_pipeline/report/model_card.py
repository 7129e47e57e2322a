"""The page that a model bundle carries for people: what the model takes and gives, what it was trained on, how good it was, its limits.

The headings follow Mitchell et al., Model Cards for Model Reporting, FAT* 2019. Made of the plan, the recipe and the training record alone:
no case, no patient and no path can stand in it.
"""

from collections.abc import Iterable, Mapping, Sequence

from fedsam_pipeline.model.bundle_check import TrainedFold
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.plans import ChannelPlan, Plans
from fedsam_pipeline.specs.postprocessing import MaskRule
from fedsam_pipeline.specs.training_record import TrainingRecord, ValidationScore

_AXES = ("axial (z)", "coronal (y)", "sagittal (x)")


def model_card(
    folds: Mapping[str, TrainedFold],
    records: Mapping[str, TrainingRecord],
    *,
    licence: str | None,
    made_with: str,
    postprocessing: Sequence[MaskRule] = (),
) -> str:
    """Markdown.

    Args:
        folds: fold name to its checked documents; all of one plan and recipe.
        records: fold name to how it came about, for those of which that is known.
        licence: of the trained weights, as those say who hand them on; ``None``: they say nothing.
        made_with: version of this package.
        postprocessing: rules that the run applies to its masks.
    """
    first = next(iter(folds.values()))
    parts = [
        f"# {first.plans.dataset_name}, {first.recipe.title}",
        "Research software. Not a medical device: not for diagnosis or treatment.",
        _task(first.plans, first.info.configuration),
        _training(folds, records, first),
        _scores(records, first.plans),
        *_postprocessing(postprocessing),
        _limits(first, records),
        _licences(first, licence),
        _use(first, made_with),
    ]
    return "\n\n".join(parts) + "\n"


def _task(plans: Plans, configuration: Configuration) -> str:
    slices = _AXES[plans.slice_axis] if configuration == "main" else f"{' and '.join([', '.join(_AXES[:2]), _AXES[2]])}, averaged"
    spacing = " x ".join(f"{value:g}" for value in plans.target_spacing)
    rows = {
        "input": f"3D images, {len(plans.channels)} channel(s) in this order: {', '.join(_channel(channel) for channel in plans.channels)}",
        "output": ", ".join(f"{value} {name}" for name, value in sorted(plans.labels.items(), key=lambda item: item[1])),
        "works at": f"{spacing} mm (z, y, x), slices {slices}, {plans.slab_depth} together, {plans.image_size} px",
        "prompts": "none needed" + ("" if plans.prompts.mode == "auto" else f"; trained with {plans.prompts.mode} prompts as well"),
    }
    return "## What it does\n\n" + _table(("", ""), rows.items())


def _channel(channel: ChannelPlan) -> str:
    if channel.scheme == "ct":
        return f"{channel.name} (HU, clipped to {channel.clip_low:g} .. {channel.clip_high:g})"
    return f"{channel.name} (z-scored image by image)"


def _training(folds: Mapping[str, TrainedFold], records: Mapping[str, TrainingRecord], first: TrainedFold) -> str:
    manifest, recipe = first.manifest, first.recipe
    lines = [
        f"Recipe `{recipe.name}` ({recipe.paper}) on base model `{first.plans.base_model}`: {manifest.trained_parameters:,} trained "
        f"parameters, {manifest.federated_parameters:,} of them shared between the sites."
    ]
    if not records:
        return "## What it was trained on\n\n" + lines[0] + " No record of the training came with these files."
    rows = []
    for fold in folds:
        if fold not in records:
            rows.append((fold, *["not known"] * 6))
            continue
        record = records[fold]
        sites = ", ".join(record.sites) + (f" (without {record.held_out})" if record.held_out else "")
        cases = "not stated" if record.train_cases is None else f"{record.train_cases}"
        traffic = "not known"
        if record.bytes_up is not None and record.bytes_down is not None:
            traffic = f"{record.bytes_up / 1e6:.1f} up, {record.bytes_down / 1e6:.1f} down"
        rows.append(
            (
                fold,
                f"{record.protocol}, {record.strategy}",
                sites,
                cases,
                f"{record.rounds} x {record.local_steps}",
                f"{record.seed}",
                traffic,
            )
        )
    heads = ("fold", "protocol, strategy", "sites", "training cases", "rounds x steps a site", "seed", "MB in all")
    lines.append(_table(heads, rows))
    spent = [f"Fold {fold}, differential privacy of sites: {record.privacy}." for fold, record in records.items() if record.privacy]
    if spent:
        lines.append(" ".join(spent) + " It covers the trained weights alone, not the scores below; several folds or runs add up.")
    begun = [f"Fold {fold} {record.start}." for fold, record in records.items() if record.start]
    if begun:
        lines.append(" ".join(begun) + " Sites, cases and privacy of that model's training are not in this table.")
    versions = next(iter(records.values())).versions
    lines.append("Trained with " + ", ".join(f"{name} {number}" for name, number in sorted(versions.items())) + ".")
    return "## What it was trained on\n\n" + "\n\n".join(lines)


def _scores(records: Mapping[str, TrainingRecord], plans: Plans) -> str:
    scored = {fold: record.validation for fold, record in records.items() if record.validation is not None}
    if not scored:
        return "## Validation\n\nNo scores: nothing was validated, or on too few cases to publish figures."
    first = next(iter(scored.values()))
    planned = [name for name in plans.foreground_names if name in first.classes]
    names = planned + sorted(first.classes.keys() - planned)  # regions are no labels of the plan
    rows = [
        (fold, str(score.num_cases), *(_dice(score.classes.get(name)) for name in names), _dice(score.dice))
        for fold, score in scored.items()
    ]
    lines = [
        f"Cases of each fold that its training did not see, scored on {_grid(first)}. {first.rule}. The last round counts, never the best.",
        _table(("fold", "cases", *names, "mean Dice"), rows),
    ]
    by_site = [
        (fold, site, str(value.num_cases), _dice(value.dice))
        for fold, score in scored.items()
        for site, value in sorted((score.sites or {}).items())
    ]
    if by_site:
        lines.append(_table(("fold", "site", "cases", "mean Dice"), by_site))
    if any(score.sites is None for score in scored.values()):
        lines.append("Sites are not told apart where one of them has too few cases.")
    return "## Validation\n\n" + "\n\n".join(lines)


def _postprocessing(steps: Sequence[MaskRule]) -> list[str]:
    if not steps:
        return []
    rules = "\n".join(f"- {_cell(str(step))}" for step in steps)
    return [
        "## Postprocessing\n\nApplied to every mask, in this order, unless it is switched off (`--disable_postprocessing`). Chosen on the "
        f"validation cases; the scores above are without it.\n\n{rules}"
    ]


def _grid(score: ValidationScore) -> str:
    return "the plan's grid" if score.grid == "plan" else f"the {score.grid} grid"


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _limits(first: TrainedFold, records: Mapping[str, TrainingRecord]) -> str:
    limits = [
        "Validation cases are of the sites named above. How it does on other scanners, protocols, ages and diseases is not known: look at "
        "masks of your own images before relying on it.",
        "Images must have the channels above, in this order; nothing in the model notices another modality, body part or order.",
        "Trained weights can reveal something about the cases that they were trained on. No image is in this bundle.",
        "The checksums in `index.json` tell damage, not forgery: take bundles from people you trust.",
    ]
    if first.manifest.personal:
        limits.append(
            f"{len(first.manifest.personal)} trained tensors stay at their sites. This is the model that all share; each site's own "
            "does better there."
        )
    if first.info.random_encoder:
        limits.append("A control experiment: the image encoder was drawn at random, not pre-trained.")
    if first.info.base_weights_sha256 == "random":
        limits.append("The base model has no published weights and was drawn at random: good for trying out commands, for nothing else.")
    if any(record.protocol == "local" for record in records.values()):
        limits.append("Trained at one site alone.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _licences(first: TrainedFold, licence: str | None) -> str:
    weights = base_model_spec(first.plans.base_model).weights
    lines = [
        f"Trained weights in this bundle: {_cell(licence) if licence else 'those who trained them have not stated a licence; ask them'}."
    ]
    if weights is None:
        lines.append(f"Base model `{first.plans.base_model}`: no weights from elsewhere.")
    else:
        lines.append(
            f"Base weights, not in this bundle: `{weights.file_name}`, {weights.origin}. Licence {weights.licence}, "
            f"text in `BASE_WEIGHTS_LICENCE.txt`. SHA-256 `{weights.file_sha256}`. "
            "Tensors in this bundle began as theirs and were changed by training."
        )
    return "## Licences\n\n" + "\n\n".join(lines)


def _use(first: TrainedFold, made_with: str) -> str:
    download = [] if first.info.base_weights_sha256 == "random" else [f"fedsam_download_weights {first.plans.base_model}"]
    lines = ["```", "fedsam_import_model BUNDLE.zip", *download, "fedsam_predict -i imgs -o masks", "```"]
    return f"## Use\n\nMade with fedsam-pipeline {made_with}:\n\n" + "\n".join(lines)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text of users in one line that cannot end its cell."""
    return " ".join(text.split()).replace("|", "\\|")
