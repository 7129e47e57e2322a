"""What a rule returns."""

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

AXIS_NAMES = ("z", "y", "x")


class Decision(NamedTuple, Generic[T]):
    """A planned value and, for people, the reason with the numbers that decided."""

    value: T
    why: str


def mm(lengths: tuple[float, ...]) -> str:
    """Lengths for reasons: ``5 x 0.8 x 0.8 mm``."""
    return " x ".join(f"{length:.4g}" for length in lengths) + " mm"
