"""What is refused before round 1 where updates are encrypted."""

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.encryption_rules import require_encryptable, require_enough_to_encrypt
from fedsam_pipeline.specs.recipe import AggregationRecipe

PLAIN: dict[str, object] = {"strategy": "fedavg", "lora_method": None, "weighting": "size", "wire": "fp32", "options": {}}


def aggregation(**changes: object) -> AggregationRecipe:
    return AggregationRecipe.model_validate(PLAIN | changes)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_strategies_of_the_mean(strategy: str) -> None:
    require_encryptable(aggregation(strategy=strategy))


@pytest.mark.parametrize("method", [None, "naive", "ffa", "rolora"])
@pytest.mark.parametrize("weighting", ["size", "equal"])
def test_linear_methods(method: str | None, weighting: str) -> None:
    require_encryptable(aggregation(lora_method=method, weighting=weighting))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(
            ({"strategy": name}, f"{name} compares the updates of single sites")
            for name in ("fedmedian", "fedtrimmedavg", "krum", "bulyan")
        ),
        *(({"lora_method": name}, f"{name} computes with the factors of single") for name in ("flexlora", "fedex", "lora_fair", "fedrot")),
        ({"weighting": "validation"}, r"weighting by validation is the server's[\s\S]*--weighting size"),
        *(({"wire": wire}, rf"lossy wire[\s\S]*found:    wire {wire}[\s\S]*add --wire fp32") for wire in ("fp16", "int8", "int4")),
    ],
)
def test_what_needs_single_updates(change: dict[str, str], says: str) -> None:
    with pytest.raises(FedsamError, match=says):
        require_encryptable(aggregation(**change))


def test_numbers_of_sites() -> None:
    require_enough_to_encrypt(2, None)
    require_enough_to_encrypt(1000, 2)
    for sites, min_sites, says in (
        (1, None, "need several sites"),
        (0, None, "need several sites"),
        (1001, None, "do not hold so many"),
        (3, 1, r"a round that needs one only would show it[\s\S]*--min_sites 1"),
    ):
        with pytest.raises(FedsamError, match=says):
            require_enough_to_encrypt(sites, min_sites)
