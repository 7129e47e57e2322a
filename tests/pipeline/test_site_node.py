"""What a hospital's node refuses: a configuration that does not say who it is, and runs that it did not agree to."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json
from fedsam_pipeline.flower.client_app import AgreementBroken
from fedsam_pipeline.pipeline.site_node import Offer, SiteNode, find_setup, find_site
from fedsam_pipeline.pipeline.site_work import FINGERPRINT, PREPARE, WORK, site_dataset
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import load_recipe
from tests.pipeline.real_federations import NAME, make_hospitals


@pytest.fixture
def hospital(users_folder: Path, monkeypatch: pytest.MonkeyPatch) -> SiteNode:
    """site_a, this process's."""
    for name, value in make_hospitals(users_folder)["site_a"].items():
        monkeypatch.setenv(name, value)
    return find_site({"site": "site_a", "privacy_floor": 1, "device": "cpu"}, {"dataset": NAME})


@pytest.fixture
def offer(tiny_plans: Plans) -> Offer:
    place = "default__plans__main/federated__fedavg-int4__seed0/fold_0"
    return Offer("r1", place, of_the_demo(tiny_plans), load_recipe("default"), "main", random_encoder=False)


def of_the_demo(plans: Plans) -> Plans:
    return Plans.from_dict(plans.to_dict() | {"dataset_name": NAME})


def message_of(offer: Offer, **changes: str) -> dict[str, Any]:
    return {**offer.model().agreement(), **offer.to_dict(), **changes}


@pytest.mark.usefixtures("users_folder")
@pytest.mark.parametrize(
    ("node_config", "says"),
    [
        ({}, "does not know which site it is"),
        ({"site": "../site_a"}, "does not know which site it is"),
        ({"site": 3}, "does not know which site it is"),
        ({"site": "site_a", "privacy_floor": 0}, "no number of patients"),
        ({"site": "site_a", "privacy_floor": "1"}, "no number of patients"),
        ({"site": "site_a", "privacy_floor": True}, "no number of patients"),
        ({"site": "site_a", "plans_sha256": "1" * 64}, r"unknown keys[\s\S]*plans_sha256[\s\S]*plan_sha256"),
        ({"site": "site_a", "encryption_key": 3}, "encryption_key of a SuperNode is no file"),
        ({"site": "site_a", "encryption_key": "encryption.key"}, r"is no file[\s\S]*an absolute path"),
        ({"site": "site_a", "privacyfloor": 10}, r"unknown keys[\s\S]*privacyfloor"),
    ],
)
def test_a_node_that_is_configured_wrongly(node_config: Mapping[str, Any], says: str) -> None:
    with pytest.raises(FedsamError, match=says):
        find_site(node_config, {"dataset": NAME})


@pytest.mark.parametrize("dataset", ["", "../Dataset001_Demo", "Dataset1", NAME + "/x"])
def test_a_message_about_no_dataset(dataset: str) -> None:
    with pytest.raises(AgreementBroken, match="names no dataset"):
        find_site({"site": "site_a"}, {"dataset": dataset})


@pytest.mark.usefixtures("users_folder")
@pytest.mark.parametrize("run_id", ["r1", "../r1", "", "*"])
def test_a_run_that_was_not_accepted(run_id: str) -> None:
    with pytest.raises(AgreementBroken, match="accepted no run"):
        find_setup({"site": "site_a"}, {"run_id": run_id})


def test_an_offer_that_holds(offer: Offer) -> None:
    read = Offer.read(message_of(offer))
    assert read == offer
    read.check(message_of(offer), offer.model().agreement())


@pytest.mark.parametrize("key", ["run_id", "run", "plans", "recipe", "configuration", "encoder"])
def test_an_offer_without_a_part(offer: Offer, key: str) -> None:
    message = message_of(offer)
    del message[key]
    with pytest.raises(AgreementBroken, match=f"without {key}"):
        Offer.read(message)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../../etc/fold_0"},
        {"run": "a/b/c"},
        {"run": "a/federated__b/fold_0/d"},
        {"run": "a/local-site_a__b/fold_0"},
        {"run": "a/federated__b/fold_0-inner"},
        {"run": "a/federated__b/fold_-1"},
        {"plans": "["},
        {"plans": "{}"},
        {"plans": "[" * 100_000},
        {"recipe": "1"},
        {"configuration": "sideways"},
    ],
)
def test_an_offer_that_cannot_be_read(offer: Offer, change: dict[str, str]) -> None:
    with pytest.raises(AgreementBroken, match="cannot be read"):
        Offer.read(message_of(offer, **change))


@pytest.mark.parametrize("key", ["plan_sha256", "recipe_sha256", "weights_sha256"])
def test_hashes_hold_the_offer(offer: Offer, key: str) -> None:
    with pytest.raises(AgreementBroken, match=f"{key}: the message has"):
        offer.check(message_of(offer, **{key: "0" * 64}), {})
    with pytest.raises(AgreementBroken, match=f"{key}: this site agreed to {'1' * 64}"):
        offer.check(message_of(offer), {key: "1" * 64})


@pytest.mark.parametrize("name", ["../plans", "/tmp/plans", "dataset", "splits_final", ""])
def test_a_plan_whose_name_is_no_files(offer: Offer, name: str) -> None:
    other = replace(offer, plans=Plans.from_dict(offer.plans.to_dict() | {"plans_name": name}))
    with pytest.raises(AgreementBroken, match="no name of a plan"):
        Offer.read(message_of(other))


def test_a_plan_for_another_dataset(hospital: SiteNode, offer: Offer) -> None:
    other = replace(offer, plans=Plans.from_dict(offer.plans.to_dict() | {"dataset_name": "Dataset002_Else"}))
    with pytest.raises(AgreementBroken, match=f"the plan is for 'Dataset002_Else', the message for {NAME}"):
        hospital.prepare(message_of(other))
    assert not hospital.folder.exists()


def test_a_site_refuses_another_plan_before_it_does_anything(hospital: SiteNode, offer: Offer) -> None:
    careful = replace(hospital, agreed={"plan_sha256": "1" * 64})
    with pytest.raises(AgreementBroken, match="this site agreed to"):
        careful.prepare(message_of(offer))
    assert not hospital.folder.exists()


def test_a_plan_for_other_labels(hospital: SiteNode, offer: Offer) -> None:
    other = Plans.from_dict(offer.plans.to_dict() | {"labels": {"background": 0, "liver": 1}})
    asked = {"kind": PREPARE, "plans": other.to_dict(), "site": "site_a", "fold": "0", "raw": str(hospital.raw_root / NAME)}
    with pytest.raises(FedsamError, match=r"does not fit this site's dataset[\s\S]*liver"):
        WORK[PREPARE](asked | {"preprocessed": str(hospital.folder)})
    assert not hospital.folder.exists()


def test_a_folder_with_another_sites_cases(hospital: SiteNode) -> None:
    with pytest.raises(FedsamError, match=r"holds other sites' cases[\s\S]*found:    site_a[\s\S]*cases of site_b alone"):
        site_dataset(hospital.raw_root / NAME, "site_b")


def measured(hospital: SiteNode, floor: int) -> dict[str, Any]:
    asked = {"kind": FINGERPRINT, "site": "site_a", "raw": str(hospital.raw_root / NAME), "privacy_floor": floor}
    return dict(json.loads(WORK[FINGERPRINT](asked | {"preprocessed": str(hospital.folder)})))


def drop_cases(hospital: SiteNode, number: int) -> None:
    """Takes labelled cases away, and says so in dataset.json."""
    raw = hospital.raw_root / NAME
    masks = sorted((raw / "labelsTr").iterdir())
    for mask in masks[:number]:
        mask.unlink()
        for image in (raw / "imagesTr").glob(f"{mask.name.split('.')[0]}_*"):
            image.unlink()
    content = read_json(raw / "dataset.json")
    (raw / "dataset.json").write_text(json.dumps(content | {"numTraining": len(masks) - number}))


def test_what_may_not_leave_is_withheld(hospital: SiteNode) -> None:
    assert "withheld" in measured(hospital, floor=100)


def test_one_patient_more_or_less_is_not_told(hospital: SiteNode) -> None:
    """Two fingerprints that differ by one patient are that patient."""
    before = measured(hospital, floor=2)
    (hospital.folder / "fingerprints" / "site_a.json").write_text('{"of": "another command, without a floor"}')
    drop_cases(hospital, 1)
    assert measured(hospital, floor=2) == before
    with pytest.raises(FedsamError, match=r"another privacy floor[\s\S]*floor 2, 1 patients have changed[\s\S]*floor 3 as now"):
        measured(hospital, floor=3)
    assert measured(hospital, floor=1) != before, "at floor 1 the site says that single patients may be known"


def test_splits_of_other_cases_stop_before_the_long_work(hospital: SiteNode, offer: Offer) -> None:
    hospital.folder.mkdir(parents=True)
    (hospital.folder / "splits_final.json").write_text(json.dumps([{"train": ["gone"], "val": []}]))
    dataset = load_raw_dataset(hospital.raw_root / NAME)
    plans = Plans.from_dict(offer.plans.to_dict() | {"labels": dict(dataset.labels)})
    names = [{**offer.plans.channels[0].model_dump(), "name": name} for name in dataset.channel_names]
    plans = Plans.from_dict(plans.to_dict() | {"channels": names})
    asked = {"kind": PREPARE, "plans": plans.to_dict(), "site": "site_a", "raw": str(hospital.raw_root / NAME)}
    with pytest.raises(FedsamError, match=r"splits_final\.json"):
        WORK[PREPARE](asked | {"fold": "0", "preprocessed": str(hospital.folder)})
    (hospital.folder / "splits_final.json").unlink()
    with pytest.raises(FedsamError, match="no such fold"):
        WORK[PREPARE](asked | {"fold": "7", "preprocessed": str(hospital.folder)})
    assert not list(hospital.folder.glob("store_*"))


def test_a_place_that_this_machine_trained_in_itself(hospital: SiteNode, offer: Offer) -> None:
    fold = hospital.results_root / NAME / offer.run
    fold.mkdir(parents=True)
    (fold / "run.json").write_text("{}")
    with pytest.raises(AgreementBroken, match="this machine has trained itself"):
        hospital.prepare(message_of(offer))
