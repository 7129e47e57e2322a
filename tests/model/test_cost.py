"""The encoder's cost: known counts, and how it grows."""

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.cost import encoder_gflop


@pytest.mark.parametrize(("name", "side", "gflop"), [("vit_b", 224, 35.35), ("lite_medsam", 224, 54.77), ("lite_medsam", 56, 3.423)])
def test_counts_at_known_sizes(name: str, side: int, gflop: float) -> None:
    assert encoder_gflop(name, side) == pytest.approx(gflop, rel=1e-3)


def test_windowed_attention_costs_in_proportion_to_the_pixels() -> None:
    assert encoder_gflop("lite_medsam", 112) == pytest.approx(4 * encoder_gflop("lite_medsam", 56), rel=0.01)


def test_a_size_that_the_encoder_cannot_take_is_refused() -> None:
    with pytest.raises(FedsamError, match="does not fit the encoder"):
        encoder_gflop("vit_b", 256)
