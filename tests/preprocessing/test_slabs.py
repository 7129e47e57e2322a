"""Slabs: what training and inference hand to the encoder, against plain loops."""

import blosc2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.preprocessing import slabs
from fedsam_pipeline.specs.plans import Plans
from tests.inference.plans_for_tests import make_plans


def _plans(num_channels: int, terms: list[list[tuple[int, int]]]) -> Plans:
    return make_plans(
        channels=[{"name": f"channel {index}", "scheme": "zscore"} for index in range(num_channels)],
        encoder_inputs=[[{"channel": c, "offset": o} for c, o in group] for group in terms],
    )


@st.composite
def _stack_and_plans(draw: st.DrawFn) -> tuple[torch.Tensor, Plans]:
    channels = draw(st.integers(1, 4))
    term = st.tuples(st.integers(0, channels - 1), st.integers(-2, 2))
    plans = _plans(channels, draw(st.lists(st.lists(term, min_size=1, max_size=4), min_size=3, max_size=3)))
    depth = draw(st.integers(1, 5))
    shape = (channels, depth + 2 * plans.max_offset, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.randn(shape, generator=generator), plans


@given(_stack_and_plans())
@settings(max_examples=60, deadline=None)
def test_encoder_inputs_equal_a_plain_loop(case: tuple[torch.Tensor, Plans]) -> None:
    stack, plans = case
    found = slabs.encoder_inputs(stack, plans)
    depth = stack.shape[1] - 2 * plans.max_offset
    assert found.shape == (depth, 3, *stack.shape[2:])
    for s in range(depth):
        for i, terms in enumerate(plans.encoder_inputs):
            total = torch.zeros(stack.shape[2:])
            for term in terms:
                total = total + stack[term.channel, s + plans.max_offset + term.offset]
            torch.testing.assert_close(found[s, i], total / len(terms), rtol=1e-6, atol=1e-6)


def test_encoder_inputs_of_one_channel_are_copies_of_the_neighbours() -> None:
    stack = torch.arange(5.0).reshape(1, 5, 1, 1)
    found = slabs.encoder_inputs(stack, _plans(1, [[(0, -1)], [(0, 0)], [(0, 1)]]))
    assert found.flatten().tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4]


def test_encoder_inputs_take_batches() -> None:
    plans = _plans(2, [[(0, -1), (1, 0)], [(0, 0)], [(1, 1)]])
    batch = torch.randn(3, 2, 6, 4, 5, generator=torch.Generator().manual_seed(1))
    found = slabs.encoder_inputs(batch, plans)
    assert torch.equal(found, torch.stack([slabs.encoder_inputs(one, plans) for one in batch]))


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (1, 2, 4, 4)])
def test_encoder_inputs_refuse_a_stack_that_does_not_fit_the_plan(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit a plan with 1 channels and a margin of 1"):
        slabs.encoder_inputs(torch.zeros(shape), _plans(1, [[(0, -1)], [(0, 0)], [(0, 1)]]))


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7)),
    first=st.integers(-4, 8),
    depth=st.integers(1, 5),
    margin=st.integers(0, 2),
    origin=st.tuples(st.integers(-5, 5), st.integers(-5, 5)),
    window=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
@settings(max_examples=100, deadline=None)
def test_read_slab_equals_a_plain_loop(
    size: tuple[int, int, int], first: int, depth: int, margin: int, origin: tuple[int, int], window: tuple[int, int]
) -> None:
    volume = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    found = slabs.read_slab(volume, first, depth, margin, origin=origin, window=window, fill=-7.0)
    expected = np.full((2, depth + 2 * margin, *window), -7.0, dtype=np.float32)
    for d in range(depth + 2 * margin):
        s = min(max(first - margin + d, 0), size[0] - 1)
        for h in range(window[0]):
            for w in range(window[1]):
                y, x = origin[0] + h, origin[1] + w
                if 0 <= y < size[1] and 0 <= x < size[2]:
                    expected[:, d, h, w] = volume[:, s, y, x]
    assert np.array_equal(found.numpy(), expected)


def test_read_slab_of_a_compressed_store_reads_the_same() -> None:
    volume = np.random.default_rng(0).normal(size=(2, 7, 9, 8)).astype(np.float32)
    stored = blosc2.asarray(volume)
    for first in (-3, 0, 2, 6):
        lazy = slabs.read_slab(stored, first, 3, 1, origin=(-2, 3), window=(14, 9))
        assert torch.equal(lazy, slabs.read_slab(volume, first, 3, 1, origin=(-2, 3), window=(14, 9)))


def test_read_slab_of_labels_gives_integers_and_the_whole_plane() -> None:
    labels = np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    found = slabs.read_slab(labels, 1, 2)
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), labels[[1, 1]])


def test_read_slab_refuses_nonsense() -> None:
    volume = np.zeros((1, 3, 4, 4), np.float32)
    with pytest.raises(ValueError, match="cannot cut a slab of 0 slices"):
        slabs.read_slab(volume, 0, 0)
    with pytest.raises(ValueError, match="belong together"):
        slabs.read_slab(volume, 0, 1, origin=(0, 0))


@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    window=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
@settings(max_examples=60, deadline=None)
def test_a_centred_window_can_be_cut_back(size: tuple[int, int], window: tuple[int, int]) -> None:
    plane = torch.randn(size, generator=torch.Generator().manual_seed(0))
    top, left = slabs.centred_origin(size, window)
    cut = slabs.crop_or_pad(plane, (top, left), window)
    assert cut.shape == window
    back = slabs.crop_or_pad(cut, (-top, -left), size, fill=torch.nan)
    kept = ~back.isnan()
    assert torch.equal(back[kept], plane[kept])
    assert int(kept.sum()) == min(size[0], window[0]) * min(size[1], window[1])


def test_resizing_is_the_identity_where_sizes_agree_and_keeps_constants_elsewhere() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert slabs.to_image_size(images, 8) is images
    assert slabs.from_image_size(images, (8, 8)) is images
    for side in (5, 16):
        constant = slabs.to_image_size(torch.full((1, 1, 8, 10), 3.0), side)
        assert constant.shape == (1, 1, side, side)
        torch.testing.assert_close(constant, torch.full_like(constant, 3.0))
    assert slabs.from_image_size(images, (11, 6)).shape == (2, 3, 11, 6)


def test_labels_are_resized_to_labels() -> None:
    labels = torch.tensor([[[0, 2], [1, 3]]], dtype=torch.int16)
    assert slabs.labels_to_image_size(labels, 2) is labels
    found = slabs.labels_to_image_size(labels, 4)
    assert found.dtype == torch.int16
    assert torch.equal(found, labels.repeat_interleave(2, 1).repeat_interleave(2, 2))
