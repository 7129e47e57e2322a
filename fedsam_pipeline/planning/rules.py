"""From a merged fingerprint to the plan: each value from its rule, with its reason."""

from typing import TypeVar

from fedsam_pipeline.planning import geometry_rules as geometry
from fedsam_pipeline.planning import intensity_rules as intensity
from fedsam_pipeline.planning import training_rules as training
from fedsam_pipeline.planning.decision import Decision
from fedsam_pipeline.planning.grids import EXTENT_STEP, linear_value, median
from fedsam_pipeline.planning.objects import most_objects, object_extents, smallest_class
from fedsam_pipeline.planning.precision import precision_notes
from fedsam_pipeline.planning.prompt_rules import prompts
from fedsam_pipeline.planning.thresholds import ResamplingRules, SliceMixingRules, Thresholds, TrainingRules, load_thresholds
from fedsam_pipeline.specs.base_model import BaseModelSpec
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.plans import Plans, ResamplingPlan, TrainingPlan

T = TypeVar("T")


def make_plan(
    fingerprint: Fingerprint,
    base: BaseModelSpec,
    *,
    plans_name: str = "plans",
    thresholds: Thresholds | None = None,
    target_spacing: tuple[float, float, float] | None = None,
) -> Plans:
    """Plans a dataset.

    Args:
        fingerprint: of the federation.
        base: the base model.
        plans_name: name of the plan and of its file.
        thresholds: ``None`` takes ``plans/rules.toml``.
        target_spacing: mm, (z, y, x) in canonical axes, in place of the rule's; all that follows from the spacing follows from this one.

    Returns:
        The plan as a file would give it back: floats at nine significant digits.

    Raises:
        FedsamError: a CT channel without foreground at any site.
    """
    rules = thresholds or load_thresholds()
    why: dict[str, str] = {}
    planned_spacing = geometry.target_spacing(fingerprint, rules.spacing)
    chosen_spacing = None if target_spacing is None else geometry.chosen_spacing(target_spacing, planned_spacing)
    spacing = _decide(why, "target_spacing", chosen_spacing or planned_spacing)
    size = median_size(fingerprint, spacing)
    axis = _decide(why, "slice_axis", geometry.slice_axis(spacing, size, rules.slice_axis))
    in_plane = [other for other in range(3) if other != axis]
    height, width = (size[other] for other in in_plane)
    side = _decide(why, "image_size", geometry.image_size((height, width), base, rules.image_size))
    window = _decide(why, "window", geometry.window((height, width), side, base, rules.image_size))
    overlap = rules.image_size.window_overlap
    why["window_overlap"] = f"windows of slices larger than one window overlap by {100 * overlap:g} %, as nnU-Net's do"

    thickness = object_extents(fingerprint.classes.values())[axis]
    num_channels = len(fingerprint.channels)
    mixing = _decide(why, "slice_mixing", geometry.slice_mixing(num_channels, axis, spacing, thickness, rules.slice_mixing))
    inputs = _decide(why, "encoder_inputs", intensity.encoder_inputs(num_channels, mixing))
    channels = tuple(
        _decide(why, f"channels.{number}", intensity.channel_plan(channel, fingerprint.kept_fraction, rules.intensity))
        for number, channel in enumerate(fingerprint.channels)
    )
    total_slices = fingerprint.num_cases * size[axis]
    training_plan, training_why = _training(
        side, total_slices, fingerprint, rules.training, rules.slice_mixing if mixing == "mixer" else None
    )
    batch, min_mixed = training_plan.effective_batch, rules.slice_mixing.min_mixed_slices
    depth = _decide(why, "slab_depth", geometry.slab_depth(spacing[axis], thickness, batch, mixing, rules.slab, min_mixed))
    field_of_view = max(size[other] * spacing[other] for other in in_plane)
    prompt, prompt_why = prompts(smallest_class(fingerprint, in_plane), field_of_view, most_objects(fingerprint), rules.prompts)
    resampling, resampling_why = _resampling(rules.resampling)
    for group, reasons in (("training", training_why), ("prompts", prompt_why), ("resampling", resampling_why)):
        why |= {f"{group}.{name}": reason for name, reason in reasons.items()}
    plans = Plans(
        plans_name=plans_name,
        dataset_name=fingerprint.dataset_name,
        base_model=base.name,
        labels=fingerprint.labels,
        channels=channels,
        target_spacing=spacing,
        slice_axis=axis,
        image_size=side,
        window=window,
        window_overlap=overlap,
        slab_depth=depth,
        slice_mixing=mixing,
        encoder_inputs=inputs,
        resampling=resampling,
        prompts=prompt,
        training=training_plan,
        fingerprint_sha256=fingerprint.sha256(),
        why=why,
    )
    notes = precision_notes(fingerprint, plans, size, rules, spacing_known=target_spacing is not None)
    explained = {name: f"{reason}; {notes[name]}: the privacy floor" if name in notes else reason for name, reason in why.items()}
    return Plans.from_dict(plans.to_dict() | {"why": explained})


def median_size(fingerprint: Fingerprint, spacing: tuple[float, float, float]) -> tuple[float, float, float]:
    """Median size (z, y, x) in voxels, after cropping, at ``spacing``."""
    z, y, x = (linear_value(median(counts), EXTENT_STEP) / length for counts, length in zip(fingerprint.extent, spacing, strict=True))
    return z, y, x


def _decide(why: dict[str, str], name: str, decision: Decision[T]) -> T:
    """Notes the reason and returns the value."""
    why[name] = decision.why
    return decision.value


def _training(
    side: int, total_slices: float, fingerprint: Fingerprint, rules: TrainingRules, mixed: SliceMixingRules | None
) -> tuple[TrainingPlan, dict[str, str]]:
    batch = training.effective_batch(side, total_slices, rules, mixed)
    decisions: dict[str, Decision[object]] = {
        "effective_batch": Decision(*batch),
        "rounds": Decision(*training.rounds(total_slices, fingerprint.num_sites, batch.value, rules)),
        "local_steps": Decision(*training.local_steps(rules)),
        "learning_rate": Decision(*training.learning_rate(batch.value, rules)),
        "lora_rank": Decision(*training.lora_rank(fingerprint.num_cases, rules)),
        "foreground_fraction": Decision(*training.foreground_fraction(rules)),
        "mirror_axes": Decision(*training.mirror_axes(rules)),
    }
    plan = TrainingPlan.model_validate({name: decision.value for name, decision in decisions.items()})
    return plan, {name: decision.why for name, decision in decisions.items()}


def _resampling(rules: ResamplingRules) -> tuple[ResamplingPlan, dict[str, str]]:
    words = {0: "nearest neighbour", 1: "linear", 3: "cubic"}
    plan = ResamplingPlan(image_order=rules.image_order, image_order_coarse_axis=rules.coarse_order, label_order=rules.label_order)
    return plan, {
        "image_order": f"{words[rules.image_order]}: fast, and close to cubic at ratios near 1",
        "image_order_coarse_axis": f"{words[rules.coarse_order]} along an axis 3 times coarser than the finest: it invents no tissue",
        "label_order": f"{words[rules.label_order]}, class by class; the class with the largest share wins",
    }
