"""The rules that come with the package."""

import pytest

from fedsam_pipeline.planning.thresholds import Thresholds, load_thresholds


@pytest.fixture(scope="module")
def rules() -> Thresholds:
    return load_thresholds()
