"""LiteMedSAM's TinyViT written out plainly: BatchNorm apart, float32, channels first, scores materialised, biases gathered at every call.

After the description of the architecture (TinyViT, Wu et al., ECCV 2022, arXiv:2207.10666), with LiteMedSAM's stem and its merging that
keeps the resolution. Parameter names are those of LiteMedSAM's checkpoint, as ours: either loads what the other holds while BatchNorm is
apart.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsam_pipeline.model.sam_modules import LayerNorm2d
from fedsam_pipeline.specs.base_model import BaseModelSpec


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, then BatchNorm, under the names ``c`` and ``bn``."""
    layers = nn.Sequential()
    layers.add_module("c", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False))
    layers.add_module("bn", nn.BatchNorm2d(outputs))
    return layers


class PlainStem(nn.Module):
    """Two 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(conv_norm(3, channels // 2), nn.GELU(), conv_norm(channels // 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)  # type: ignore[no-any-return]


class PlainMBConv(nn.Module):
    """Inverted bottleneck of expansion 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(channels, 4 * channels)
        self.conv2 = conv_norm(4 * channels, 4 * channels, kernel=3, groups=4 * channels)
        self.conv3 = conv_norm(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        widened = functional.gelu(self.conv1(x))
        return functional.gelu(self.conv3(functional.gelu(self.conv2(widened))) + x)


class PlainMerging(nn.Module):
    """Changes width and, with stride 2, resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(inputs, outputs)
        self.conv2 = conv_norm(outputs, outputs, kernel=3, stride=stride, groups=outputs)
        self.conv3 = conv_norm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(functional.gelu(self.conv2(functional.gelu(self.conv1(x)))))  # type: ignore[no-any-return]


class PlainAttention(nn.Module):
    """Self-attention of a window's tokens, with a bias for every head and absolute offset."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.size = heads, dim // heads
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        places = list(itertools.product(range(window), repeat=2))
        offsets = [[abs(y - v) * window + abs(x - u) for v, u in places] for y, x in places]
        self.offsets = torch.tensor(offsets)

    def forward(self, x: Tensor) -> Tensor:
        """(windows, tokens, dim) to the same."""
        windows, tokens, dim = x.shape
        query, key, value = self.qkv(self.norm(x)).view(windows, tokens, self.heads, 3 * self.size).split(self.size, dim=3)
        query, key, value = query.permute(0, 2, 1, 3), key.permute(0, 2, 1, 3), value.permute(0, 2, 1, 3)
        scores = (query @ key.transpose(-2, -1)) * self.size**-0.5 + self.attention_biases[:, self.offsets]
        return self.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(windows, tokens, dim))  # type: ignore[no-any-return]


class PlainMLP(nn.Module):
    """LayerNorm, widen by 4, GELU, narrow."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


class PlainBlock(nn.Module):
    """Window attention, depthwise convolution, MLP."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn, self.mlp = PlainAttention(dim, heads, window), PlainMLP(dim)
        self.local_conv = conv_norm(dim, dim, kernel=3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same; H and W are multiples of the window."""
        batch, dim, height, width = x.shape
        size = self.window
        tokens = x.flatten(2).transpose(1, 2)
        grid = tokens.view(batch, height // size, size, width // size, size, dim)
        windows = grid.transpose(2, 3).reshape(-1, size * size, dim)
        mixed = self.attn(windows).view(batch, height // size, width // size, size, size, dim)
        tokens = tokens + mixed.transpose(2, 3).reshape(batch, height * width, dim)
        image: Tensor = self.local_conv(tokens.transpose(1, 2).reshape(batch, dim, height, width))
        tokens = image.flatten(2).transpose(1, 2)
        mixed = tokens + self.mlp(tokens)
        return mixed.transpose(1, 2).reshape(batch, dim, height, width)  # type: ignore[no-any-return]


class PlainTinyViT(nn.Module):
    """(B, 3, H, W) to (B, dim, H / 4, W / 4).

    Args:
        spec: a base model with a TinyViT encoder.
    """

    def __init__(self, spec: BaseModelSpec) -> None:
        super().__init__()
        shape, out = spec.encoder_shape, spec.decoder_shape.dim
        self.patch_embed = PlainStem(shape.embed_dims[0])
        self.layers = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(shape.embed_dims, shape.depths, strict=True)):
            stage = nn.Module()
            blocks = (PlainMBConv(dim) if i == 0 else PlainBlock(dim, shape.heads[i], shape.windows[i]) for _ in range(depth))
            stage.add_module("blocks", nn.ModuleList(blocks))
            if i < 3:
                stage.add_module("downsample", PlainMerging(dim, shape.embed_dims[i + 1], stride=2 if i < 2 else 1))
            self.layers.append(stage)
        self.neck = nn.Sequential(
            nn.Conv2d(shape.embed_dims[-1], out, 1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            LayerNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for stage in self.layers:
            for block in stage.get_submodule("blocks").children():
                x = block(x)
            if hasattr(stage, "downsample"):
                x = stage.get_submodule("downsample")(x)
        return self.neck(x)  # type: ignore[no-any-return]
