"""Manifest: which tensors train and which travel. Resolved once; optimizer, wire and bundle all use it."""

import math
from typing import Literal

from pydantic import Field

from fedsam_pipeline.specs.document import Document

Wire = Literal["fp32", "fp16", "int8", "int4"]
BITS_A_VALUE: dict[Wire, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
BYTES_A_SCALE = 2
"""``int8`` and ``int4`` send the upper half of a float32 with every row"""


def matrix_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor as a matrix: its first axis, and all others flattened. Scalars and vectors are one row."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def num_scales(shape: tuple[int, ...]) -> int:
    """Scales of a tensor in ``int8`` and ``int4``: one a row of its matrix; of a tall one, such as LoRA's B, one a column, so that scales
    never outnumber the values of a row."""
    return 1 if len(shape) < 2 else min(matrix_of(shape))


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
        return math.prod(self.shape)


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
    def personal(self) -> tuple[TensorEntry, ...]:
        """The trained tensors that stay at their site."""
        return tuple(entry for entry in self.tensors if entry.travels == "none")

    @property
    def trained_parameters(self) -> int:
        """Number of trained values."""
        return sum(entry.num_elements for entry in self.tensors)

    @property
    def federated_parameters(self) -> int:
        """Number of values that travel one way."""
        return sum(entry.num_elements for entry in self.federated)

    def payload_bytes(self, wire: Wire) -> int:
        """Bytes of the travelling values one way, before entropy coding and without names and headers.

        ``fp32`` 4 and ``fp16`` 2 bytes a value; ``int8`` 1 byte and ``int4`` half a byte a value, and 2 bytes for each of ``num_scales``.
        """
        scales = sum(num_scales(entry.shape) for entry in self.federated) * BYTES_A_SCALE if wire in ("int8", "int4") else 0
        return -(-self.federated_parameters * BITS_A_VALUE[wire] // 8) + scales
