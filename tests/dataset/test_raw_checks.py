"""What may name a site or a case."""

import pytest

from fedsam_pipeline.dataset.raw_checks import is_safe_name


@pytest.mark.parametrize("name", ["a", "site_a", "3", "Case-1.2"])
def test_names_that_can_be_file_names(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "\na", "a\nb", "é", "a\x1b[0m"])
def test_names_that_cannot(name: str) -> None:
    assert not is_safe_name(name)
