"""Execution: how one machine carries out the agreed step. Found by that machine, kept by it, never agreed and never hashed."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from fedsam_pipeline.specs.document import Document


class Execution(Document):
    """``execution/SITE.json``. The optimizer step is the same whatever these values: gradients are those of the whole batch."""

    schema_version: Literal[1] = 1
    device: str
    micro_batch: PositiveInt
    """images that go through the network at once"""
    gradient_checkpointing: bool
    """encoder blocks are computed again in the backward pass instead of being remembered"""
    batch: PositiveInt
    """images of a whole step, as probed for"""
    image_bytes: NonNegativeInt
    """what the probe found that one image needs in a training step, with the checkpointing chosen"""
    budget_bytes: PositiveInt
    """what the images of a step may take together"""
    why: str
