"""Linear layers that keep a frozen weight in autocast's type."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional


def autocast_type(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on this device now; ``None``: it does not, as never where shapes alone are computed."""
    enabled = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


class CastLinear(nn.Linear):
    """``nn.Linear``, which under autocast casts a frozen weight once and not at every call.

    Autocast itself keeps casts only of weights that train, and casting ViT-B's takes as long as encoding one image of 224 pixels with them.
    The price is memory, half of what the weights take, unless ``settle_frozen`` says that nothing needs the weight itself.
    The copy is made again when the weight was changed in place or replaced. ``tensor.data`` hides changes from torch: change a weight under
    ``torch.no_grad()`` instead.
    """

    _source: tuple[Tensor | None, ...] = ()
    _stamp: tuple[object, ...] = ()
    _kept: tuple[Tensor, Tensor | None]

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
        return tuple(tensor for tensor in self._kept if tensor is not None) if self._stamp else ()

    def cast_now(self, dtype: torch.dtype) -> None:
        """Makes the copy before the first step does, which would lay it among tensors that are freed again, whose memory would then stay in
        pieces. A weight that trains is left alone."""
        with torch.autocast(self.weight.device.type, dtype):
            self._operands()

    def _operands(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, or their kept casts."""
        weight, bias = self.weight, self.bias
        dtype = autocast_type(weight.device)
        parts = [tensor for tensor in (weight, bias) if tensor is not None]
        changes = any(tensor.requires_grad or tensor.is_inference() for tensor in parts)  # the latter count no versions
        if changes or dtype is None or torch.compiler.is_compiling():
            return weight, bias
        stamp = (dtype, *((id(tensor), tensor.data_ptr(), tensor._version) for tensor in parts))
        if stamp != self._stamp:
            # prediction may come first, and a training step saves these for its backward pass
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (weight.to(dtype), None if bias is None else bias.to(dtype))
            self._source, self._stamp = (weight, bias), stamp  # held, so that no other tensor takes their identity
        return self._kept


@torch.no_grad()
def settle_frozen(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Frozen weights of plain ``CastLinear`` layers are held in autocast's type alone: a third of the memory of both, the same results.

    For models that compute under this autocast from now on; outside it their layers raise ``RuntimeError``. Layers with LoRA keep theirs,
    since a merged change is added in full precision; they are cast now.

    Args:
        model: with its adapter, so that what trains says so.
        dtype: of autocast; ``None``, without it: nothing changes.
    """
    if dtype is None:
        return
    for layer in model.modules():
        if type(layer) is CastLinear and not any(parameter.requires_grad for parameter in layer.parameters()):
            layer.to(dtype)
        elif isinstance(layer, CastLinear):
            layer.cast_now(dtype)
