"""SAM that needs no prompts: one mask token a class, softmax over classes. Where the plan says so it takes prompts as well.

Image encoder, prompt encoder and mask decoder are SAM's (Kirillov et al., ICCV 2023); the prompt-free decoding with one token a class
follows SAMed (Zhang & Liu, 2023, arXiv:2304.13785). For stride-4 encoders the head keeps SAM's shapes; for stride-16 encoders the output
is upscaled sixteenfold to full resolution.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.cast_linear import cast_once
from fedsam_pipeline.model.channels_last import in_channels_last
from fedsam_pipeline.model.positions import ExactPositions
from fedsam_pipeline.model.prompts import Prompts, prompt_tokens
from fedsam_pipeline.model.sam_modules import HyperNetworkMLP, LayerNorm2d, MaskDecoder, PromptEncoder, TwoWayTransformer
from fedsam_pipeline.model.slice_mixer import SliceMixer
from fedsam_pipeline.model.tiny_vit import TinyViT
from fedsam_pipeline.model.vit import fast_vit, published_vit
from fedsam_pipeline.specs.base_model import BaseModelSpec

MASK_IN_CHANNELS = 16  # of the prompt encoder's mask branch, in every published checkpoint
SAM_MASK_TOKENS = 4
ADDED_BY_PLAN = ("slice_mixer.", "prompt_classes.")
"""parameters that no base model has and no recipe names: where a plan adds them, they always train and travel"""


class PromptFreeSam(nn.Module):
    """Segments squares of one fixed size into classes.

    Args:
        spec: the base model.
        num_classes: classes of the softmax, background included.
        image_size: side of the input in pixels, a multiple of ``spec.window_multiple``.
        mixer_depth: slices of a slab that a ``SliceMixer`` mixes after the neck; 0: none, and every slice is on its own.
        prompted: whether ``decode`` takes prompts.
    """

    input_shift: Tensor
    input_scale: Tensor

    def __init__(self, spec: BaseModelSpec, num_classes: int, image_size: int, *, mixer_depth: int = 0, prompted: bool = False) -> None:
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
        self.prompt_encoder.pe_layer = ExactPositions.of(self.prompt_encoder.pe_layer)
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
        in_channels_last(self.mask_decoder.output_upscaling)
        cast_once(self.mask_decoder)
        self.slice_mixer = SliceMixer(dim, mixer_depth) if mixer_depth else None
        self.prompt_classes = nn.Embedding(num_classes, dim, _weight=torch.zeros(num_classes, dim)) if prompted else None
        self.register_buffer("input_shift", torch.tensor(spec.input_shift)[None, :, None, None], persistent=False)
        self.register_buffer("input_scale", torch.tensor(spec.input_scale)[None, :, None, None], persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W), H = W = ``image_size``, to embeddings (N, dim, H / stride, W / stride)."""
        return self.image_encoder(images * self.input_scale + self.input_shift)  # type: ignore[no-any-return]

    @property
    def mixes_slices(self) -> bool:
        """Whether ``decode`` must see whole slabs."""
        return self.slice_mixer is not None

    @property
    def slices_together(self) -> int:
        """Slices that cannot be decoded apart: those of a slab where slices mix, else 1."""
        return 1 if self.slice_mixer is None else self.slice_mixer.depth

    def decode(self, embeddings: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Embeddings (N, dim, h, w) to class logits (N, K, ``image_size``, ``image_size``).

        Images without a prompt are decoded as if nobody had prompted.

        Raises:
            ValueError: prompts for a model that takes none, or no whole number of slabs where slices mix.
        """
        if self.slice_mixer is not None:
            embeddings = self.slice_mixer(embeddings)
        if prompts is None:
            return self._logits(embeddings, self._no_tokens(embeddings))
        if self.prompt_classes is None:
            raise ValueError("this model was planned without prompts")
        asked = prompts.classes.any(dim=1)
        with_prompt, without = asked.nonzero()[:, 0], (~asked).nonzero()[:, 0]
        parts = []
        if len(with_prompt):
            tokens = prompt_tokens(self.prompt_encoder, prompts.rows(with_prompt), self.prompt_classes)
            parts.append(self._logits(embeddings[with_prompt], tokens.to(embeddings.dtype)))
        if len(without):
            parts.append(self._logits(embeddings[without], self._no_tokens(embeddings)))
        return torch.cat(parts)[torch.cat([with_prompt, without]).argsort()]

    def _no_tokens(self, embeddings: Tensor) -> Tensor:
        """A batch of one without tokens: it broadcasts over the images."""
        return embeddings.new_zeros(1, 0, embeddings.shape[1])

    def _logits(self, embeddings: Tensor, sparse: Tensor) -> Tensor:
        """SAM's ``MaskDecoder.predict_masks``, which takes one image at a time, for a batch of images with tokens of their own.

        Args:
            embeddings: (N, dim, h, w).
            sparse: (N or 1, T, dim) prompt tokens.
        """
        decoder = self.mask_decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        place = self.prompt_encoder.get_dense_pe().to(embeddings.dtype)
        found, source = decoder.transformer(embeddings + dense, place, tokens)
        upscaled = decoder.output_upscaling(source.transpose(1, 2).unflatten(2, embeddings.shape[-2:]))
        weights = torch.stack([mlp(found[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
        logits = weights @ upscaled.flatten(2)
        return logits.unflatten(2, upscaled.shape[-2:])  # type: ignore[no-any-return]

    def forward(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Normalized images (N, 3, H, W) to class logits (N, K, H, W)."""
        return self.decode(self.encode(images), prompts)


def _image_encoder(spec: BaseModelSpec, image_size: int) -> nn.Module:
    shape = spec.encoder_shape
    if spec.encoder == "tiny_vit":
        return TinyViT(shape.embed_dims, shape.depths, shape.heads, shape.windows, spec.decoder_shape.dim)
    return fast_vit(published_vit(spec, image_size))


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
