"""SAM's ViT image encoder: ``segment_anything``'s, with blocks that compute the same faster and in less memory.

A head's score of query i for key j is, with tokens at (y, x) of a window (ViTDet, Li et al., ECCV 2022, arXiv:2203.16527; the decomposed
position terms are those of MViTv2, Li et al., CVPR 2022, arXiv:2112.01526):

    scale * q_i . k_j + q_i . h[y_i - y_j] + q_i . w[x_i - x_j]

Written out, that is one product of (tokens x tokens) scores and two additions as large. Here the position terms are part of the product:
the query is lengthened by its terms for every row and every column of the window, the key by a one for its row and a one for its column.
The terms of all offsets are one small product of q with both tables; those that a query needs are a strided view of it, so that no table
is gathered and there is nothing to keep up to date while tables train.

Parameters keep their names, values and order: checkpoints load strictly.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsam_pipeline.model.attention import attend
from fedsam_pipeline.model.cast_linear import cast_once
from fedsam_pipeline.model.channels_last import in_channels_last
from fedsam_pipeline.model.sam_modules import ImageEncoderViT
from fedsam_pipeline.specs.base_model import BaseModelSpec


def published_vit(spec: BaseModelSpec, image_size: int) -> nn.Module:
    """``segment_anything``'s encoder, untouched: (B, 3, H, W) to (B, dim, H / 16, W / 16)."""
    shape = spec.encoder_shape
    encoder: nn.Module = ImageEncoderViT(
        depth=shape.depths[0],
        embed_dim=shape.embed_dims[0],
        img_size=image_size,
        mlp_ratio=4,
        norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
        num_heads=shape.heads[0],
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=shape.global_attention,
        window_size=shape.windows[0],
        out_chans=spec.decoder_shape.dim,
    )
    return encoder


def fast_vit(encoder: nn.Module) -> nn.Module:
    """Puts our modules in the place of ``encoder``'s own, and its parameters into them; returns it."""
    encoder.add_module("patch_embed", PatchEmbed(encoder.get_submodule("patch_embed")))
    blocks = encoder.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    for i, block in enumerate(blocks):
        blocks[i] = ViTBlock(block)
    neck = encoder.get_submodule("neck")
    assert isinstance(neck, nn.Sequential)
    in_channels_last(neck)
    return encoder


class PatchEmbed(nn.Module):
    """A convolution that cuts the image into patches: (B, 3, H, W) to (B, H / 16, W / 16, C), contiguous.

    The published one returns a view of channels-first memory, whose order every sum with it keeps: all blocks then copy their input.

    Args:
        plain: that of ``segment_anything``, whose parameters it takes over.
    """

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.proj = plain.get_submodule("proj")

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1).contiguous()  # type: ignore[no-any-return]


class ViTBlock(nn.Module):
    """Attention, then an MLP, each behind a LayerNorm and within a residual connection: (B, H, W, C) to the same.

    Args:
        plain: a block of ``segment_anything``, whose modules it takes over.
    """

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.norm1 = plain.get_submodule("norm1")
        self.attn = RelPosAttention(plain.get_submodule("attn"), int(plain.window_size))  # type: ignore[arg-type]
        self.norm2 = plain.get_submodule("norm2")
        self.mlp = plain.get_submodule("mlp")
        cast_once(self.mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class RelPosAttention(nn.Module):
    """Multi-head self-attention with decomposed relative positions, within windows or over the whole image.

    Args:
        plain: an attention of ``segment_anything``, whose parameters it takes over.
        window: side of the windows in tokens; 0: one window, the image.
    """

    key_places: Tensor

    def __init__(self, plain: nn.Module, window: int) -> None:
        super().__init__()
        self.heads, self.window = int(plain.num_heads), window  # type: ignore[arg-type]
        # the order in which the plain module lists them
        self.rel_pos_h, self.rel_pos_w = plain.get_parameter("rel_pos_h"), plain.get_parameter("rel_pos_w")
        self.qkv, self.proj = plain.get_submodule("qkv"), plain.get_submodule("proj")
        cast_once(self)
        rows, columns = ((len(table) + 1) // 2 for table in (self.rel_pos_h, self.rel_pos_w))
        token = torch.arange(rows * columns)
        places = torch.cat([functional.one_hot(token // columns, rows), functional.one_hot(token % columns, columns)], dim=1)
        self.sides = (rows, columns)
        self.register_buffer("key_places", places.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same; a grid that is no multiple of the window is padded with zero tokens on the far sides.

        Padding gives keys and values, as in the published module, but no queries: its own outputs are cut off.
        """
        qkv = self._padded(self.qkv(x))
        query, key, value = qkv.view(*qkv.shape[:3], 3, self.heads, -1).unbind(3)
        rows, columns = self.sides
        bands = []
        for down, own_down in _spans(x.shape[1], rows):
            parts = []
            for across, own_across in _spans(x.shape[2], columns):
                parts.append(self._within_windows(query[:, own_down, own_across], key[:, down, across], value[:, down, across]))
            bands.append(_joined(parts, dim=2))
        return self.proj(_joined(bands, dim=1))  # type: ignore[no-any-return]

    def _within_windows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of some windows that lie side by side, down and across.

        Args:
            query: (B, h, w, heads, d), of every window its first rows and columns, as many of each.
            key, value: (B, H, W, heads, d), whole windows.

        Returns:
            (B, h, w, heads * d).
        """
        rows, columns = self.sides
        windows = (key.shape[1] // rows, key.shape[2] // columns)
        query, key, value = (_by_window(tokens, *windows) for tokens in (query, key, value))
        grid = query.shape[:6]
        query, key, value = (tokens.flatten(4, 5).flatten(0, 2) for tokens in (query, key, value))
        places = self.key_places.to(key.dtype).expand(*key.shape[:2], -1, -1)
        mixed = attend(self._with_position_terms(query, grid[4:]), torch.cat([key, places], dim=-1), value)
        return mixed.view(*grid, -1).permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)

    def _padded(self, qkv: Tensor) -> Tensor:
        """A zero token's projection is the bias: padding after it equals padding before it, and is not multiplied by anything."""
        height, width = qkv.shape[1:3]
        rows, columns = self.sides
        down, across = -height % rows, -width % columns
        if not down and not across:
            return qkv
        bias = self.qkv.get_parameter("bias").to(qkv.dtype)
        padded = bias.expand(qkv.shape[0], height + down, width + across, -1).clone()
        padded[:, :height, :width] = qkv
        return padded

    def _with_position_terms(self, query: Tensor, own: Sequence[int]) -> Tensor:
        """(G, heads, M, d), the first ``own`` rows and columns of each window, to (G, heads, M, d + rows + columns), the first d scaled."""
        (rows, columns), size = self.sides, query.shape[-1]
        # flipped, so that a query at row y finds its terms for rows 0, 1, ... at y places before the last row's
        tables = torch.cat([self.rel_pos_h.flip(0), self.rel_pos_w.flip(0)]).to(query.dtype)
        terms = functional.linear(query, tables)
        offsets = len(tables)
        outer = (*query.shape[:2], *own)
        steps = (terms.stride(0), terms.stride(1), own[1] * offsets, offsets)
        down = terms.as_strided((*outer, rows), (*steps[:2], steps[2] - 1, steps[3], 1), rows - 1)
        across = terms.as_strided((*outer, columns), (*steps[:3], steps[3] - 1, 1), 2 * rows - 1 + columns - 1)
        return torch.cat([(query * size**-0.5).view(*outer, size), down, across], dim=-1).flatten(2, 3)


def _by_window(tokens: Tensor, down: int, across: int) -> Tensor:
    """(B, H, W, heads, d) as (B, down, across, heads, H / down, W / across, d), a view."""
    batch, height, width, *each = tokens.shape
    return tokens.view(batch, down, height // down, across, width // across, *each).permute(0, 1, 3, 5, 2, 4, 6)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """One tensor, without a copy where there is but one part."""
    return torch.cat(parts, dim=dim) if len(parts) > 1 else parts[0]


def _spans(length: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Where the whole windows are, then the one that is cut, each as a pair: with its padding, and only the image's own tokens."""
    whole = length - length % window
    if whole:
        yield slice(whole), slice(whole)
    if whole < length:
        yield slice(whole, whole + window), slice(whole, length)
