"""Medical SAM Adapter: small bottlenecks inside a frozen image encoder.

Wu et al., "Medical SAM Adapter: Adapting Segment Anything Model for Medical Image Segmentation", arXiv:2304.12620; federated as FedMSA by
Liu et al., FedFMS, MICCAI 2024, arXiv:2403.05408. A bottleneck is d -> ratio * d -> d with a GELU between. Every attention block gets two:

    y = attention(...),  attention output:  y + bottleneck(y)
    x = norm(...),       MLP output:        mlp(x) + mlp_scale * bottleneck(x)

The published code keeps a third one for the depth axis that its 2D training never calls; it is left out. There, all weights start at random
values; here the up projection starts at zero, so that at round 0 the model is the base model.

The bottlenecks are children named ``adapter`` of the encoder's own modules, called by forward hooks: no name of the base model changes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsam_pipeline.model.injection import attention_modules
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.tiny_vit import TransformerMLP
from fedsam_pipeline.specs.recipe import AdapterRecipe


class Adapter(nn.Module):
    """The contribution of one bottleneck: (..., d) to (..., d), zero until trained.

    Args:
        dim: d.
        hidden: width of the bottleneck.
        scale: factor of the contribution.
        generator: draws the down projection, uniformly within 1 / sqrt(d) as torch does for linear layers; its bias is zero.
    """

    def __init__(self, dim: int, hidden: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        drawn = torch.rand(self.down.weight.shape, generator=generator, device=generator.device) * 2 - 1
        self.down.weight.data.copy_(drawn / math.sqrt(dim))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        contribution: Tensor = self.scale * self.up(functional.gelu(self.down(x)))
        return contribution


def _after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG001  (the signature of a forward hook)
    changed: Tensor = output + module.get_submodule("adapter")(output)
    return changed


def _beside(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    tokens = module.norm(inputs[0]) if isinstance(module, TransformerMLP) else inputs[0]  # ViT normalizes before it calls the MLP
    changed: Tensor = output + module.get_submodule("adapter")(tokens)
    return changed


def inject_adapters(model: PromptFreeSam, recipe: AdapterRecipe, seed: int) -> tuple[str, ...]:
    """Puts two bottlenecks into every attention block of the image encoder; returns the names of the modules that hold one.

    Args:
        model: its parameters keep their names and values.
        recipe: width and scale.
        seed: of the down projections.
    """
    generator = torch.Generator().manual_seed(seed)
    changed = []
    for name, attention in attention_modules(model.image_encoder):
        parent = name.rpartition(".")[0]
        mlp = model.image_encoder.get_submodule(f"{parent}.mlp")
        dim = attention.get_submodule("proj").get_parameter("weight").shape[0]
        hidden = max(1, round(dim * recipe.ratio))
        for place, module, scale, hook in ((name, attention, 1.0, _after), (f"{parent}.mlp", mlp, recipe.mlp_scale, _beside)):
            module.add_module("adapter", Adapter(dim, hidden, scale, generator))
            module.register_forward_hook(hook)
            changed.append(f"image_encoder.{place}")
    return tuple(changed)
