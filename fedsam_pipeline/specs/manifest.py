"""Manifest: which tensors train and which travel. Resolved once; optimizer, wire and bundle all use it."""

from typing import Literal

from pydantic import Field

from fedsam_pipeline.specs.document import Document


class TensorEntry(Document):
    """One trained tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32"]
    travels: Literal["both", "none"]
    """between server and site; ``none`` stays at the site"""

    @property
    def num_elements(self) -> int:
        """Number of values."""
        count = 1
        for side in self.shape:
            count *= side
        return count


class Manifest(Document):
    """All trained tensors, sorted by name."""

    schema_version: Literal[1] = 1
    recipe: str
    base_model: str
    tensors: tuple[TensorEntry, ...] = Field(min_length=1)

    @property
    def trained_names(self) -> tuple[str, ...]:
        """Names of the tensors that the optimizer updates."""
        return tuple(entry.name for entry in self.tensors)

    @property
    def federated(self) -> tuple[TensorEntry, ...]:
        """The tensors that travel."""
        return tuple(entry for entry in self.tensors if entry.travels == "both")

    @property
    def trained_parameters(self) -> int:
        """Number of trained values."""
        return sum(entry.num_elements for entry in self.tensors)

    @property
    def federated_parameters(self) -> int:
        """Number of values that travel one way."""
        return sum(entry.num_elements for entry in self.federated)
