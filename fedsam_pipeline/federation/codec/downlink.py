"""The server's end of the wire: what its sites hold, and what the last message to them lost."""

from torch import Tensor

from fedsam_pipeline.federation.codec.coding import Encoded, encode
from fedsam_pipeline.specs.manifest import Wire

_HELD_PREFIX, _RESIDUAL_PREFIX = "held/", "residual/"


class Downlink:
    """Sends states against the one sent before.

    Args:
        wire: of all messages but the first, which is exact: every run starts from the very state it was given.
        held: the state that all sites hold. At round 0 they build it themselves, from base weights and seed.
        residual: what the last message lost.
    """

    def __init__(self, wire: Wire, held: dict[str, Tensor], residual: dict[str, Tensor] | None = None) -> None:
        self._wire, self._held, self._residual = wire, held, residual or {}
        self._first = residual is None

    @classmethod
    def restored(cls, wire: Wire, checkpoint: dict[str, Tensor]) -> tuple["Downlink", dict[str, Tensor]]:
        """The downlink, and the server's aggregate, of a checkpoint that ``state`` was part of."""
        parts: dict[str, dict[str, Tensor]] = {"": {}, _HELD_PREFIX: {}, _RESIDUAL_PREFIX: {}}
        for name, tensor in checkpoint.items():
            prefix = next((p for p in (_HELD_PREFIX, _RESIDUAL_PREFIX) if name.startswith(p)), "")
            parts[prefix][name.removeprefix(prefix)] = tensor
        return cls(wire, parts[_HELD_PREFIX], parts[_RESIDUAL_PREFIX]), parts[""]

    @property
    def held(self) -> dict[str, Tensor]:
        """The state that the sites hold now, bit for bit."""
        return self._held

    def send(self, tensors: dict[str, Tensor]) -> Encoded:
        """The next state for sites that hold the last one; from now on its decoded form is what they hold."""
        encoded = encode(tensors, self._held, "fp32" if self._first else self._wire, self._residual)
        self._held, self._residual, self._first = encoded.decoded, encoded.residual, False
        return encoded

    def full(self) -> Encoded:
        """What the sites hold, for one that does not."""
        return encode(self._held, None, "fp32", {})

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep so that the next message of a continued run is the same bytes."""
        held = {f"{_HELD_PREFIX}{name}": tensor for name, tensor in self._held.items()}
        return held | {f"{_RESIDUAL_PREFIX}{name}": tensor for name, tensor in self._residual.items()}
