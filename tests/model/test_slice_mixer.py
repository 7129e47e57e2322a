"""The mixer after the neck: nothing at round 0, and afterwards within slabs only."""

import pytest
import torch

from fedsam_pipeline.model.build import build_adapted, build_base
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.slice_mixer import SliceMixer
from fedsam_pipeline.specs.recipe import load_recipe


def trained_mixer(depth: int) -> SliceMixer:
    mixer = SliceMixer(16, depth)
    with torch.no_grad():
        mixer.up.weight.normal_(generator=torch.Generator().manual_seed(0))
    return mixer


def test_round_0_is_the_base_model() -> None:
    adapted = build_adapted("tiny_random", load_recipe("flap_sam"), rank=2, num_classes=3, image_size=28, weights=None, mixer_depth=2)
    base = build_base(base_model_spec("tiny_random"), num_classes=3, image_size=28, weights=None)
    images = torch.randn(4, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(adapted.model(images), base(images), rtol=0, atol=1e-6)
    mixing = {name for name in adapted.manifest.trained_names if name.startswith("slice_mixer.")}
    assert mixing == {name for name, _ in adapted.model.named_parameters() if name.startswith("slice_mixer.")} != set()
    assert mixing <= {entry.name for entry in adapted.manifest.federated}
    assert adapted.model.mixes_slices
    assert (adapted.model.slices_together, base.slices_together) == (2, 1)


def test_a_slice_hears_its_neighbours_and_no_other_slab() -> None:
    mixer, embeddings = trained_mixer(4), torch.randn(8, 16, 3, 3)
    changed = embeddings.clone()
    changed[1] += 1
    with torch.no_grad():
        difference = (mixer(changed) - mixer(embeddings)).abs().amax(dim=(1, 2, 3))
    assert (difference > 1e-4).tolist() == [True, True, True, False, False, False, False, False]


def test_slabs_one_by_one_or_together() -> None:
    mixer, embeddings = trained_mixer(3), torch.randn(6, 16, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(mixer(embeddings), torch.cat([mixer(embeddings[:3]), mixer(embeddings[3:])]))


def test_part_of_a_slab_is_refused() -> None:
    with pytest.raises(ValueError, match="5 slices are no whole number of slabs of 4"):
        trained_mixer(4)(torch.randn(5, 16, 3, 3))
