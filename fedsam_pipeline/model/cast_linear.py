"""Linear layers that keep a frozen weight in autocast's type."""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional


def autocast_type(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on this device now; ``None``: it does not, as never where shapes alone are computed."""
    enabled = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


class _Cast(NamedTuple):
    stamp: tuple[object, ...]
    source: Tensor
    """held, so that no other tensor takes its identity"""
    result: Tensor


class CastLinear(nn.Linear):
    """``nn.Linear``, which under autocast casts a frozen weight, and a frozen bias, once and not at every call.

    Autocast itself keeps casts only of weights that train, and casting ViT-B's takes as long as encoding one image of 224 pixels with them.
    The price is memory, half of what the weights take, unless ``settle_frozen`` says that nothing needs the weight itself.
    The copy is made again when the weight was changed in place or replaced. ``tensor.data`` hides changes from torch: change a weight under
    ``torch.no_grad()`` instead.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self._casts: dict[str, _Cast] = {}

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """Takes over the parameters of ``linear``."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, *self._operands())

    @property
    def kept_casts(self) -> tuple[Tensor, ...]:
        """The copies that are held now."""
        return tuple(cast.result for cast in self._casts.values())

    def cast_now(self, dtype: torch.dtype) -> None:
        """Makes the copies now. Made within the first step, they would lie among tensors that are freed again, and leave their memory in
        pieces. What trains is left alone."""
        with torch.autocast(self.weight.device.type, dtype):
            self._operands()

    def _operands(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, or their kept casts."""
        if torch.compiler.is_compiling():  # which cannot follow what comes here
            return self.weight, self.bias
        dtype = autocast_type(self.weight.device)
        if dtype is None:
            return self.weight, self.bias
        return self._cast("weight", self.weight, dtype), None if self.bias is None else self._cast("bias", self.bias, dtype)

    def _cast(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """``tensor`` itself if it trains or counts no versions, as one of inference mode does."""
        if tensor.requires_grad or tensor.is_inference():
            self._casts.pop(name, None)
            return tensor
        stamp = (dtype, id(tensor), tensor.data_ptr(), tensor._version)
        if name not in self._casts or self._casts[name].stamp != stamp:
            # prediction may come first, and a training step saves these for its backward pass
            with torch.inference_mode(False), torch.no_grad():
                self._casts[name] = _Cast(stamp, tensor, tensor.to(dtype))
        return self._casts[name].result


def cast_once(module: nn.Module) -> None:
    """Puts a ``CastLinear`` in the place of every plain ``nn.Linear`` below ``module``, with its parameters and their names."""
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Linear:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, CastLinear.of(layer))


@torch.no_grad()
def settle_frozen(model: nn.Module, dtype: torch.dtype | None, *, compiled: bool = False) -> None:
    """Frozen weights of plain ``CastLinear`` layers are held in autocast's type alone: a third of the memory of both, the same results.

    For models that compute under this autocast from now on; outside it their layers raise ``RuntimeError``. Layers with LoRA keep theirs,
    since a merged change is added in full precision; they are cast now.

    Args:
        model: with its adapter, so that what trains says so.
        dtype: of autocast; ``None``, without it: nothing changes.
        compiled: blocks are, or will be: they use no kept casts.
    """
    if dtype is None:
        return
    for layer in model.modules():
        if type(layer) is CastLinear and not any(parameter.requires_grad for parameter in layer.parameters()):
            layer.to(dtype)
        elif isinstance(layer, CastLinear) and not compiled:
            layer.cast_now(dtype)
