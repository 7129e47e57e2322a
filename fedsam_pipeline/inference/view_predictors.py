"""One predictor for each view of a configuration."""

from collections.abc import Sequence

import torch

from fedsam_pipeline.inference.predictor import Predictor, SliceModel
from fedsam_pipeline.preprocessing.views import views
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.plans import Plans


def view_predictors(
    model: SliceModel,
    plans: Plans,
    configuration: Configuration,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    *,
    mirror_axes: Sequence[int] = (),
    step_size: float | None = None,
) -> tuple[Predictor, ...]:
    """The members of ``stream_ensemble`` for one model: the other views, then the plan's own.

    Args:
        model, plans, device, autocast_dtype, step_size: as for :class:`Predictor`.
        configuration: that the model was trained in.
        mirror_axes: of the stored volume (S, H, W); every view mirrors along the same directions of the patient.
    """
    return tuple(
        Predictor(
            model,
            view.plans,
            device,
            autocast_dtype,
            mirror_axes=view.axes(tuple(mirror_axes)),
            step_size=step_size,
            order=view.order,
        )
        for view in views(plans, configuration)
    )
