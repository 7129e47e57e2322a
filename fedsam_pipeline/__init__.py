"""Self-configuring federated fine-tuning of the Segment Anything Model on 3D medical images.

``from fedsam_pipeline import Segmenter`` is the way from Python to a trained model. It is imported when it is asked for: the package itself
costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsam_pipeline.pipeline.segmenter import Segmenter

__all__ = ["Segmenter"]


def __getattr__(name: str) -> Any:
    if name != "Segmenter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedsam_pipeline.pipeline.segmenter import Segmenter

    return Segmenter
