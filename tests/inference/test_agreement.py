"""Agreement of members, beside Dice computed the plain way."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.inference.agreement import MAX_CLASSES, Agreement, CaseAgreement, winner


def plain_dice(labels: np.ndarray, label: int, weights: np.ndarray) -> float | None:
    scores = []
    for one, other in combinations(labels == label, 2):
        sizes = weights[one].sum() + weights[other].sum()
        if sizes:
            scores.append(2 * weights[one & other].sum() / sizes)
    return float(np.mean(scores)) if scores else None


@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 10**6), st.booleans())
def test_it_is_the_mean_dice_of_all_pairs(members: int, classes: int, seed: int, weighted: bool) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.choice(classes, size=(members, 5, 4, 3), p=[0.8, *[0.2 / (classes - 1)] * (classes - 1)])
    weights = generator.random((5, 4, 3)) if weighted else np.ones((5, 4, 3))
    agreement = Agreement(members, classes)
    for part in (slice(0, 2), slice(2, 5)):  # as slices come
        agreement.add([torch.from_numpy(own[part]).short() for own in labels], weights[part] if weighted else None)
    expected = [plain_dice(labels, label, weights) for label in range(1, classes)]
    assert agreement.dice() == pytest.approx(expected)


def test_members_that_say_the_same_agree() -> None:
    labels = torch.zeros(3, 1, 4, 4, dtype=torch.int16)
    labels[:, :, 1:3] = 1
    agreement = Agreement(3, 3)
    agreement.add(list(labels))
    assert agreement.dice() == (1.0, None)  # nobody found class 2


def test_a_class_that_one_member_alone_found_is_a_disagreement() -> None:
    labels = torch.zeros(2, 1, 4, 4, dtype=torch.int16)
    labels[0, 0, 0, 0] = 1
    agreement = Agreement(2, 2)
    agreement.add(list(labels))
    assert agreement.dice() == (0.0,)


@given(st.integers(0, 1000))
def test_the_winner_is_the_first_largest(seed: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (2, 5, 3, 4)).astype(np.float32))
    assert torch.equal(winner(scores), scores.argmax(dim=1).short())


def test_one_member_is_not_watched() -> None:
    assert CaseAgreement.between(1, 1, 3) == CaseAgreement(None, None)
    watched = CaseAgreement.between(2, 4, 3)
    assert watched.folds is not None and watched.mirrors is not None
    assert CaseAgreement.between(2, 1, MAX_CLASSES + 1).folds is None
    with pytest.raises(ValueError, match="nobody to agree with"):
        Agreement(1, 3)
