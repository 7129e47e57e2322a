"""Which tensors of an update are LoRA factors, and which two belong together.

The factors of target ``q`` of layer ``NAME`` are ``NAME.lora_A_q`` (rank, in) and ``NAME.lora_B_q`` (rows, rank); the change of the layer's
rows is scale * B A (Hu et al., ICLR 2022, arXiv:2106.09685).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fedsam_pipeline.errors import FedsamError

FactorKind = Literal["A", "B"]
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<kind>[AB])_(?P<target>[^.]+)")


@dataclass(frozen=True, order=True)
class Pair:
    """The two factors of one target of one layer."""

    layer: str
    target: str

    @property
    def a(self) -> str:
        """Name of A."""
        return f"{self.layer}.lora_A_{self.target}"

    @property
    def b(self) -> str:
        """Name of B."""
        return f"{self.layer}.lora_B_{self.target}"


def factor_kind(name: str) -> FactorKind | None:
    """``A`` or ``B`` for a LoRA factor, ``None`` for any other tensor."""
    match = _FACTOR.fullmatch(name)
    return None if match is None else ("A" if match["kind"] == "A" else "B")


def pairs(names: Iterable[str]) -> tuple[Pair, ...]:
    """The pairs among ``names``, sorted.

    Raises:
        FedsamError: there is no factor, or one without its partner.
    """
    found = set(names)
    matches = [match for name in found if (match := _FACTOR.fullmatch(name))]
    made = sorted({Pair(match["layer"], match["target"]) for match in matches})
    if not made:
        raise FedsamError(
            "nothing to aggregate as LoRA: no tensor that travels is a LoRA factor",
            found=f"{len(found)} tensors",
            expected="names such as LAYER.lora_A_q and LAYER.lora_B_q",
            fix="drop the LoRA method (Flower's strategy then averages every tensor), or federate the factors in the recipe",
        )
    lone = sorted(name for pair in made for name, partner in ((pair.a, pair.b), (pair.b, pair.a)) if partner not in found)
    if lone:
        raise FedsamError(
            "a LoRA factor travels without its partner",
            found=f"{len(lone)} lone factors, such as {lone[0]}",
            expected="both A and B of every layer",
            fix='federate both in the recipe ("*.lora_A_*", "*.lora_B_*"), or use the LoRA method ffa or none',
        )
    return tuple(made)
