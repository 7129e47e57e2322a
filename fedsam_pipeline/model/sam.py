"""SAM without prompts: one mask token a class, softmax over classes.

Image encoder, prompt encoder and mask decoder are SAM's (Kirillov et al., ICCV 2023); the prompt-free decoding with one token a class
follows SAMed (Zhang & Liu, 2023, arXiv:2304.13785). For stride-4 encoders the head keeps SAM's shapes; for stride-16 encoders the output
is upscaled sixteenfold to full resolution.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.sam_modules import HyperNetworkMLP, ImageEncoderViT, LayerNorm2d, MaskDecoder, PromptEncoder, TwoWayTransformer
from fedsam_pipeline.model.tiny_vit import TinyViT
from fedsam_pipeline.specs.base_model import BaseModelSpec

MASK_IN_CHANNELS = 16  # of the prompt encoder's mask branch, in every published checkpoint
SAM_MASK_TOKENS = 4


class PromptFreeSam(nn.Module):
    """Segments squares of one fixed size into classes.

    Args:
        spec: the base model.
        num_classes: classes of the softmax, background included.
        image_size: side of the input in pixels, a multiple of ``spec.window_multiple``.
    """

    input_shift: Tensor
    input_scale: Tensor

    def __init__(self, spec: BaseModelSpec, num_classes: int, image_size: int) -> None:
        super().__init__()
        if image_size % spec.window_multiple:
            raise FedsamError(
                "the image size does not fit the encoder's attention windows",
                found=image_size,
                expected=f"a multiple of {spec.window_multiple} for {spec.name}",
                fix="mend image_size in the plan, or plan again",
            )
        dim = spec.decoder_shape.dim
        side = image_size // spec.stride
        self.spec, self.num_classes, self.image_size = spec, num_classes, image_size
        self.image_encoder = _image_encoder(spec, image_size)
        self.prompt_encoder = PromptEncoder(
            embed_dim=dim, image_embedding_size=(side, side), input_image_size=(image_size, image_size), mask_in_chans=MASK_IN_CHANNELS
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=num_classes - 1,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=dim, mlp_dim=spec.decoder_shape.mlp_dim, num_heads=spec.decoder_shape.heads
            ),
            transformer_dim=dim,
            iou_head_depth=3,
            iou_head_hidden_dim=dim,
        )
        if spec.stride == 16:
            self.mask_decoder.output_upscaling, hyper = _sixteenfold_head(dim, num_classes)
            self.mask_decoder.output_hypernetworks_mlps = hyper
        self.register_buffer("input_shift", torch.tensor(spec.input_shift)[None, :, None, None], persistent=False)
        self.register_buffer("input_scale", torch.tensor(spec.input_scale)[None, :, None, None], persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W), H = W = ``image_size``, to embeddings (N, dim, H / stride, W / stride)."""
        return self.image_encoder(images * self.input_scale + self.input_shift)  # type: ignore[no-any-return]

    def decode(self, embeddings: Tensor) -> Tensor:
        """Embeddings (N, dim, h, w) to class logits (N, K, ``image_size``, ``image_size``).

        The prompt-token batch stays at 1: the decoder broadcasts it over the images.
        """
        sparse = embeddings.new_zeros(1, 0, embeddings.shape[1])
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        logits, _ = self.mask_decoder.predict_masks(
            image_embeddings=embeddings,
            image_pe=self.prompt_encoder.get_dense_pe().to(embeddings.dtype),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        return logits  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) to class logits (N, K, H, W)."""
        return self.decode(self.encode(images))


def _image_encoder(spec: BaseModelSpec, image_size: int) -> nn.Module:
    shape = spec.encoder_shape
    if spec.encoder == "tiny_vit":
        return TinyViT(shape.embed_dims, shape.depths, shape.heads, shape.windows, spec.decoder_shape.dim)
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


def _sixteenfold_head(dim: int, num_classes: int) -> tuple[nn.Sequential, nn.ModuleList]:
    """Transposed convolutions dim, dim/4, dim/8, dim/16, dim/32, with LayerNorm2d after all but the last, and hyper-networks to match."""
    widths = [dim, dim // 4, dim // 8, dim // 16, dim // 32]
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers.append(nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2))
        if i < len(widths) - 2:
            layers.append(LayerNorm2d(outputs))
        layers.append(nn.GELU())
    hyper = nn.ModuleList(HyperNetworkMLP(dim, dim, widths[-1], 3) for _ in range(num_classes))
    return nn.Sequential(*layers), hyper
