"""A training step as the published systems write it: ``segment_anything``'s modules as they are, in float32.

After FLAP-SAM (Asokan et al., MICCAI 2024 workshops, arXiv:2407.21739) and SAMed (Zhang & Liu, arXiv:2304.13785): LoRA is extra linear
layers around a frozen projection, attention writes its scores out, the prompt encoder and the mask decoder are called slice by slice,
AdamW runs over the tensors one by one. The head is the one of the model it is compared with, so that both compute the same."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.reference.tiny_vit import PlainTinyViT
from fedsam_pipeline.model.build import AdaptedModel
from fedsam_pipeline.model.lora import LoRALinear
from fedsam_pipeline.model.sam import MASK_IN_CHANNELS
from fedsam_pipeline.model.sam_modules import ImageEncoderViT, LayerNorm2d, MaskDecoder, PromptEncoder, TwoWayTransformer
from fedsam_pipeline.specs.recipe import Recipe
from fedsam_pipeline.training.loss import segmentation_loss


class LoRAAround(nn.Module):
    """A projection and, for some of its output rows, two linear layers whose output is added to them."""

    def __init__(self, ours: LoRALinear, plain: nn.Linear) -> None:
        super().__init__()
        self.plain, self.scaling = plain, ours.scaling
        self.rows = {name: _slice_of(ours.get_buffer(f"rows_{name}")) for name in ours.target_names}
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for name in ours.target_names:
            for layers, factor in ((self.down, "A"), (self.up, "B")):
                weight = ours.get_parameter(f"lora_{factor}_{name}").detach()
                layers[name] = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                layers[name].weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.plain(x)
        for name, rows in self.rows.items():
            projected[..., rows] += self.scaling * self.up[name](self.down[name](x))
        return projected


class PlainSam(nn.Module):
    """SAM for classes, one image at a time behind the encoder.

    Args:
        adapted: the model to compare with; base weights, LoRA's factors and what trains are taken from it.
    """

    input_shift: Tensor
    input_scale: Tensor

    def __init__(self, adapted: AdaptedModel) -> None:
        super().__init__()
        ours, spec = adapted.model, adapted.model.spec
        side, shape, dim = ours.image_size // spec.stride, spec.encoder_shape, spec.decoder_shape.dim
        self.image_encoder: nn.Module
        if spec.encoder == "tiny_vit":
            self.image_encoder = PlainTinyViT(spec)
        else:
            self.image_encoder = ImageEncoderViT(
                depth=shape.depths[0],
                embed_dim=shape.embed_dims[0],
                img_size=ours.image_size,
                mlp_ratio=4,
                norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
                num_heads=shape.heads[0],
                patch_size=16,
                qkv_bias=True,
                use_rel_pos=True,
                global_attn_indexes=shape.global_attention,
                window_size=shape.windows[0],
                out_chans=dim,
            )
        self.prompt_encoder = PromptEncoder(
            embed_dim=dim,
            image_embedding_size=(side, side),
            input_image_size=(ours.image_size, ours.image_size),
            mask_in_chans=MASK_IN_CHANNELS,
        )
        heads, mlp_dim = spec.decoder_shape.heads, spec.decoder_shape.mlp_dim
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=ours.num_classes - 1,
            transformer=TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=mlp_dim, num_heads=heads),
            transformer_dim=dim,
            iou_head_depth=3,
            iou_head_hidden_dim=dim,
        )
        if spec.stride == 16:
            self.mask_decoder.output_upscaling = _like(ours.mask_decoder.output_upscaling)
            self.mask_decoder.output_hypernetworks_mlps = type(ours.mask_decoder.output_hypernetworks_mlps)(
                type(mlp)(dim, dim, mlp.layers[-1].out_features, 3) for mlp in ours.mask_decoder.output_hypernetworks_mlps
            )
        self.register_buffer("input_shift", ours.input_shift.clone(), persistent=False)
        self.register_buffer("input_scale", ours.input_scale.clone(), persistent=False)
        self._take_over(adapted)
        self.train()

    def _take_over(self, adapted: AdaptedModel) -> None:
        state = {name: tensor for name, tensor in adapted.model.state_dict().items() if ".lora_" not in name}
        for name, module in self.named_modules():
            if isinstance(module, nn.BatchNorm2d):  # ours is folded: what is left of it is the convolution's bias
                bias = state.pop(f"{name.removesuffix('.bn')}.c.bias")
                ones, zeros = torch.ones_like(bias), torch.zeros_like(bias)
                values = {"weight": ones, "bias": bias, "running_mean": zeros, "running_var": ones - module.eps}
                state |= {f"{name}.{key}": value for key, value in values.items()} | {f"{name}.num_batches_tracked": torch.tensor(0)}
        self.load_state_dict(state)
        trained = {_folded(name, back=True) for name in adapted.manifest.trained_names}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)
        for name, layer in adapted.model.named_modules():
            if isinstance(layer, LoRALinear):
                parent = self.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], LoRAAround(layer, getattr(parent, name.rpartition(".")[2])))

    def trained(self) -> dict[str, nn.Parameter]:
        """The tensors that train, by the names that they have in the model it is compared with."""
        found = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            for around, factor in ((".down.", ".lora_A_"), (".up.", ".lora_B_")):
                if around in name:
                    name = name.replace(around, factor).removesuffix(".weight")
            found[_folded(name.replace(".plain.", "."))] = parameter
        return found

    def train(self, mode: bool = True) -> "PlainSam":
        """BatchNorm uses its stored statistics, as in the model it is compared with."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W) to class logits (N, K, H, W)."""
        embeddings = self.image_encoder(images * self.input_scale + self.input_shift)
        masks = []
        for embedding in embeddings:
            sparse, dense = self.prompt_encoder(points=None, boxes=None, masks=None)
            logits, _ = self.mask_decoder.predict_masks(
                image_embeddings=embedding[None],
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
            )
            masks.append(logits)
        return torch.cat(masks)


class PlainTrainer:
    """Optimizer steps of a ``PlainSam``."""

    def __init__(self, model: PlainSam, recipe: Recipe, rate: float) -> None:
        self.model, self._recipe = model.train(), recipe
        self._trained = list(model.trained().values())
        optimizer = recipe.optimizer
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=rate, betas=optimizer.betas, weight_decay=optimizer.weight_decay, foreach=False, fused=False
        )

    def steps(self, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
        """A step on each of these images (N, 3, H, W) and labels (N, H, W); the mean loss."""
        total = 0.0
        for images, labels in batches:
            loss = segmentation_loss(self.model(images), labels, self._recipe.loss)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._trained, self._recipe.optimizer.gradient_clip)
            self._optimizer.step()
            total += loss.item()
        return total / len(batches)


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Over tensors of the same names: the norm of the difference over that of theirs, all taken together."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"other tensors: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    difference = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in ours)
    return float((difference / sum(float(tensor.double().square().sum()) for tensor in theirs.values())) ** 0.5)


def _folded(name: str, *, back: bool = False) -> str:
    """BatchNorm's bias under the name of the convolution's that it is folded into, or the other way."""
    plain, folded = ".bn.bias", ".c.bias"
    before, after = (folded, plain) if back else (plain, folded)
    return name.removesuffix(before) + after if name.endswith(before) else name


def _slice_of(rows: Tensor) -> slice | Tensor:
    """Neighbouring rows as a slice, as in SAMed's code."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if len(rows) == last + 1 - first else rows


def _like(head: nn.Module) -> nn.Sequential:
    """A sixteenfold head of the same layers, without its values."""
    layers: list[nn.Module] = []
    for layer in head.children():
        if isinstance(layer, nn.ConvTranspose2d):
            layers.append(nn.ConvTranspose2d(layer.in_channels, layer.out_channels, kernel_size=2, stride=2))
        else:
            layers.append(LayerNorm2d(len(layer.get_parameter("weight"))) if list(layer.parameters()) else nn.GELU())
    return nn.Sequential(*layers)
