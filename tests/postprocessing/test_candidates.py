"""Where the volumes to try come from."""

from fedsam_pipeline.planning.grids import log_position
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.postprocessing.candidates import candidate_volumes
from fedsam_pipeline.specs.fingerprint import Bin, ClassFingerprint, Counts, Fingerprint
from tests.planning.fingerprints import random_site


def at(position: int) -> Counts:
    return {Bin(position, position): 5}


def measured(volume: float, components: int) -> ClassFingerprint:
    return ClassFingerprint(num_cases=5, volume_mm3=at(log_position(volume)), components=at(components), extent_mm=(at(1), at(1), at(1)))


def fingerprint(**classes: ClassFingerprint) -> Fingerprint:
    return random_site(range(5)).model_copy(update={"classes": classes})


def test_volumes_are_shares_of_the_usual_object() -> None:
    found = candidate_volumes(fingerprint(organ=measured(30_000, 1), lesion=measured(4_000, 8)), (0.2, 0.01))
    assert found.volumes["lesion"] == (5.0, 100.0)
    assert found.volumes["organ"][0] == 300.0
    assert found.why["lesion"].startswith("5, ")
    assert "1, 20 % of the usual object of" in found.why["lesion"]
    assert "components: 8)" in found.why["lesion"]


def test_a_class_of_which_the_fingerprint_tells_nothing_has_none() -> None:
    assert candidate_volumes(fingerprint(), (0.2,)).volumes == {}


def test_the_package_comes_with_shares() -> None:
    assert load_thresholds().postprocessing.min_volume_shares == (0.01, 0.05, 0.2)
