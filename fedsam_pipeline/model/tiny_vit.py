"""LiteMedSAM's image encoder: TinyViT with a full-resolution stem and SAM's neck.

TinyViT (Wu et al., ECCV 2022, arXiv:2207.10666) as LiteMedSAM changed it: the patch embedding is two 1x1 convolutions of stride 1, so
stage 0 runs at full resolution; merging halves the resolution after stages 0 and 1 and keeps it after stage 2. Parameter names are those
of LiteMedSAM's checkpoint, which loads strictly.

Feature maps are (B, C, H, W) in channels-last memory, so that the (B, H, W, C) views that attention needs are free.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsam_pipeline.model.attention import attend
from fedsam_pipeline.model.cast_linear import CastLinear
from fedsam_pipeline.model.channels_last import ChannelGELU, ChannelNorm, gelu


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm whose statistics are frozen. ``fold`` makes one convolution of the two."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> "ConvNorm":
        """Trains the convolution only: BatchNorm always uses its stored statistics."""
        super().train(mode)
        self.bn.eval()
        return self

    @torch.no_grad()
    def fold(self) -> None:
        """Moves BatchNorm into the convolution's weight and bias. Folding twice changes nothing."""
        if not isinstance(self.bn, nn.BatchNorm2d):
            return
        norm, conv = self.bn, self.c
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv.weight.copy_(conv.weight * scale[:, None, None, None])
        conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
        self.bn = nn.Identity()


class PatchEmbed(nn.Module):
    """Two 1x1 convolutions at full resolution: (B, 3, H, W) to (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(3, channels // 2), ChannelGELU(), ConvNorm(channels // 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)  # type: ignore[no-any-return]


class MBConv(nn.Module):
    """Inverted bottleneck: widen by 4, depthwise 3x3, narrow, residual, GELU."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.conv1 = ConvNorm(channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, kernel=3, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = gelu(self.conv1(x))
        hidden = gelu(self.conv2(hidden))
        return gelu(self.conv3(hidden) + x)


class PatchMerging(nn.Module):
    """Changes the width between stages and, with ``stride`` 2, halves the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, kernel=3, stride=stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = gelu(self.conv1(x))
        x = gelu(self.conv2(x))
        return self.conv3(x)  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with one learned bias a head and absolute offset (|dy|, |dx|).

    ``qkv`` holds its rows head by head: for head ``i``, ``d`` rows of q, then of k, then of v.
    """

    bias_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = CastLinear(dim, 3 * dim)
        self.proj = CastLinear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        y, x = y.flatten(), x.flatten()
        index = (y[:, None] - y[None]).abs() * window + (x[:, None] - x[None]).abs()
        self.register_buffer("bias_index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C), N = window * window."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, self.heads, 3, dim // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        bias = self.attention_biases[:, self.bias_index].to(query.dtype)
        mixed = attend(query * query.shape[-1] ** -0.5, key, value, bias)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))  # type: ignore[no-any-return]


class TransformerMLP(nn.Module):
    """LayerNorm, widen by 4, GELU, narrow."""

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = CastLinear(dim, dim * expansion)
        self.fc2 = CastLinear(dim * expansion, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


class TinyViTBlock(nn.Module):
    """Window attention, a local depthwise convolution, an MLP; residual around the first and the last."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(dim, heads, window)
        self.mlp = TransformerMLP(dim)
        self.local_conv = ConvNorm(dim, dim, kernel=3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same; sides that are no multiple of the window are padded with zeros on the far side."""
        image = x.permute(0, 2, 3, 1)
        image = image + self._attend(image)
        local = self.local_conv(image.permute(0, 3, 1, 2))
        tokens = local.permute(0, 2, 3, 1)
        mixed: Tensor = tokens + self.mlp(tokens)
        return mixed.permute(0, 3, 1, 2)

    def _attend(self, image: Tensor) -> Tensor:
        batch, height, width, dim = image.shape
        size = self.window
        pad_height, pad_width = -height % size, -width % size
        if pad_height or pad_width:
            image = functional.pad(image, (0, 0, 0, pad_width, 0, pad_height))
        rows, columns = (height + pad_height) // size, (width + pad_width) // size
        windows = image.view(batch, rows, size, columns, size, dim).transpose(2, 3).reshape(-1, size * size, dim)
        windows = self.attn(windows)
        windows = windows.view(batch, rows, columns, size, size, dim).transpose(2, 3)
        image = windows.reshape(batch, rows * size, columns * size, dim)
        return image[:, :height, :width]


class Stage(nn.Module):
    """Blocks of one width, then the merging into the next."""

    def __init__(self, blocks: list[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """(B, 3, H, W) to (B, ``out_channels``, H / 4, W / 4).

    Args:
        embed_dims: width of each of the four stages.
        depths: blocks of each stage; those of stage 0 are convolutions.
        heads: attention heads of each stage (stage 0 has none; its entry is ignored).
        windows: side of the attention windows of each stage, in tokens (likewise).
        out_channels: width of the neck's output.
    """

    def __init__(
        self, embed_dims: tuple[int, ...], depths: tuple[int, ...], heads: tuple[int, ...], windows: tuple[int, ...], out_channels: int
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(embed_dims[0])
        strides = (2, 2, 1)  # the last merging keeps the resolution
        stages = []
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            blocks: list[nn.Module] = [MBConv(dim) if i == 0 else TinyViTBlock(dim, heads[i], windows[i]) for _ in range(depth)]
            merging = PatchMerging(dim, embed_dims[i + 1], strides[i]) if i < len(strides) else None
            stages.append(Stage(blocks, merging))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dims[-1], out_channels, 1, bias=False),
            ChannelNorm(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            ChannelNorm(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        for stage in self.layers:
            x = stage(x)
        return self.neck(x)  # type: ignore[no-any-return]

    def fold_batch_norm(self) -> None:
        """Folds every BatchNorm into its convolution; outputs stay the same to rounding."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
