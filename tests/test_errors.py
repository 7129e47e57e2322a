"""The error that a user meets: its words, and its way between processes."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from fedsam_pipeline.errors import FedsamError


def test_the_message_names_all_that_is_known_in_order() -> None:
    assert str(FedsamError("an image is not 3D", path="imagesTr/a.nii.gz", found=(3, 4), expected="a 3D image", fix="mend it")) == (
        "an image is not 3D\n  where:    imagesTr/a.nii.gz\n  found:    (3, 4)\n  expected: a 3D image\n  fix:      mend it"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert str(FedsamError("unknown recipe", found="x")) == "unknown recipe\n  found:    x"
    assert str(FedsamError("unknown recipe")) == "unknown recipe"
    assert "found:    0" in str(FedsamError("empty", found=0))  # zero is something


def raise_it() -> None:
    raise FedsamError("an image is not 3D", path="imagesTr/a.nii.gz", found=(3, 4), expected="a 3D image", fix="mend it")


def test_nothing_is_lost_between_processes() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(FedsamError) as caught:
        pool.submit(raise_it).result()
    with pytest.raises(FedsamError) as here:
        raise_it()
    assert str(caught.value) == str(here.value)
    assert caught.value.path == "imagesTr/a.nii.gz"
    assert (caught.value.what, caught.value.found, caught.value.expected, caught.value.fix) == (
        "an image is not 3D",
        (3, 4),
        "a 3D image",
        "mend it",
    )
