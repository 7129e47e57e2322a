"""Augmentation of one slab with batchgenerators: one draw for the whole slab, so that its slices stay consistent.

Rotation, scaling, noise, blur, brightness, contrast, low resolution and gamma, in the plane, with probabilities and ranges close to
nnU-Net's (Isensee et al., Nature Methods 2021, supplementary note). No elastic deformation, which nnU-Net dropped as well.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
from batchgenerators.transforms.abstract_transforms import Compose
from batchgenerators.transforms.color_transforms import BrightnessMultiplicativeTransform, ContrastAugmentationTransform, GammaTransform
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
from batchgenerators.transforms.spatial_transforms import SpatialTransform

MAX_ROTATION = math.radians(20)
_global_generators = Lock()
"""held by the thread that draws from numpy's and Python's global generators"""


class SlabAugmentation:
    """Augments slabs of one window size.

    Args:
        window: (height, width) of the slabs.
        mirror_axes: axes of (slice, height, width) that may be mirrored.
    """

    def __init__(self, window: tuple[int, int], mirror_axes: tuple[int, ...]) -> None:
        self.mirror_axes = mirror_axes
        self._transforms = Compose(
            [
                SpatialTransform(
                    window,
                    patch_center_dist_from_border=None,
                    do_elastic_deform=False,
                    angle_x=(-MAX_ROTATION, MAX_ROTATION),
                    scale=(0.8, 1.25),
                    p_rot_per_sample=0.4,
                    p_scale_per_sample=0.4,
                    border_mode_data="constant",
                    border_mode_seg="constant",
                    order_data=1,
                    order_seg=0,
                    random_crop=False,
                ),
                GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_sample=0.1),
                GaussianBlurTransform((0.5, 1.0), different_sigma_per_channel=False, p_per_sample=0.2),
                BrightnessMultiplicativeTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
                ContrastAugmentationTransform((0.75, 1.25), per_channel=False, p_per_sample=0.15),
                SimulateLowResolutionTransform((0.5, 1), order_upsample=1, p_per_sample=0.15),
                GammaTransform((0.7, 1.5), invert_image=True, retain_stats=True, p_per_sample=0.1),
                GammaTransform((0.7, 1.5), invert_image=False, retain_stats=True, p_per_sample=0.3),
            ]
        )

    def __call__(self, image: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Augments one slab.

        Args:
            image: (C, S, H, W) float32, S with its margin.
            labels: (D, H, W).
            generator: source of all randomness.

        Returns:
            The same shapes and types, new arrays.
        """
        channels, slices, height, width = image.shape
        with _global_generators_from(generator):
            result: dict[str, Any] = self._transforms(
                data=image.reshape(1, channels * slices, height, width).copy(), seg=labels[None].astype(np.float32)
            )
        image = result["data"].reshape(channels, slices, height, width)
        labels = result["seg"][0].astype(labels.dtype)
        for axis in self.mirror_axes:
            if generator.random() < 0.5:
                image, labels = np.flip(image, axis + 1), np.flip(labels, axis)
        return np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(labels)


@contextmanager
def _global_generators_from(generator: np.random.Generator) -> Iterator[None]:
    """Seeds numpy's and Python's global generators, both of which batchgenerators draws from, and puts them back as they were.

    Slabs are cut by a thread beside the training step, and by one such thread at a time. Nothing else of ours draws from these generators.
    """
    with _global_generators:
        numpy_before, python_before = np.random.get_state(), random.getstate()  # noqa: NPY002
        np.random.seed(generator.integers(0, 2**32, size=4, dtype=np.uint32))  # noqa: NPY002
        random.seed(int(generator.integers(0, 2**63)))
        try:
            yield
        finally:
            np.random.set_state(numpy_before)  # noqa: NPY002
            random.setstate(python_before)
