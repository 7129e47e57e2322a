"""``fedsam_train_federated --encrypt`` from the flags to the trained model; the sites are Flower apps in this process (no Ray)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.entrypoints import plan_and_preprocess, train_federated
from fedsam_pipeline.flower.round_loop import RoundLoop
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.model.trained_files import load_tensors

RUNS = Path("fedsam_data/results/Dataset001_Demo/default__plans__main")
PLAIN, FOLD = (RUNS / f"federated__fedavg{how}__seed0" / "fold_0" for how in ("", "-encrypted"))
KEY = FOLD / "sites" / "encryption.key"
FLAGS = ["--rounds", "2", "--local_steps", "1", "--val_every", "0", "--wire", "fp32"]


@pytest.fixture
def planned(sites_in_process: list[SiteSetup]) -> list[SiteSetup]:
    """The tiny cohort, planned; the sites that training serves, in order."""
    make_demo_dataset(Path("fedsam_data/raw/Dataset001_Demo"), size="tiny")
    assert plan_and_preprocess.main(["-d", "1", "-m", "tiny_random", "-np", "1", "--privacy_floor", "1"]) == 0
    path = Path("fedsam_data/preprocessed/Dataset001_Demo/plans.json")
    plans = json.loads(path.read_text(encoding="utf-8"))
    plans["training"] |= {"effective_batch": plans["slab_depth"]}
    path.write_text(json.dumps(plans), encoding="utf-8")
    return sites_in_process


def train(*flags: str) -> int:
    return train_federated.main([*FLAGS, *flags])


def load(name: str, fold: Path = FOLD) -> Any:
    return json.loads((fold / name).read_text(encoding="utf-8"))


def test_the_trained_model_is_the_one_of_a_plain_run(planned: list[SiteSetup], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda _most: 0)  # as --seed 0, which a plain run has
    assert train() == 0
    plain, scores = load_tensors(PLAIN / "adapter.safetensors"), load("validation/summary.json", PLAIN)
    assert load("run.json", PLAIN)["encrypt"] is False and not list(RUNS.rglob(KEY.name))
    assert train("--encrypt") == 0
    encrypted = load_tensors(FOLD / "adapter.safetensors")
    for name, tensor in plain.items():
        torch.testing.assert_close(encrypted[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert load("validation/summary.json")["dice"] == pytest.approx(scores["dice"], abs=0.01)
    state = load("run.json")
    assert state["encrypt"] is True and state["arguments"]["encrypt"] is True
    assert KEY.stat().st_mode & 0o777 == 0o600
    assert {setup.encryption_key for setup in planned[-3:]} == {KEY.absolute()}
    entries = [entry for entry in load("communication.json")["rounds"] if entry["message"] == "train.round"]
    assert all(entry["encryption"]["parts"] == 3 for entry in entries)
    secret = KEY.read_bytes()[100:164]
    others = [path for path in FOLD.rglob("*") if path.is_file() and path.absolute() != KEY.absolute()]
    assert len(others) > 10 and not any(secret in path.read_bytes() for path in others)
    assert train("--encrypt", "--c") == 0
    assert KEY.read_bytes()[100:164] == secret
    assert train("--encrypt", "--overwrite") == 0
    assert KEY.read_bytes()[100:164] != secret  # another run, another key


REFUSED = {
    "--wire int8": "cannot travel over a lossy wire",
    "--strategy fedmedian": "fedmedian compares the updates of single sites",
    "--lora_method flexlora": "flexlora computes with the factors of single sites",
    "--weighting validation": "weighting by validation is the server's",
    "--min_sites 1": "a round that needs one only would show it",
    "--protocol local": "encrypted sums need several sites",
    "--protocol centralized": "encrypted sums need several sites",
    "--dry_run": "--encrypt",
}


def test_what_is_refused_before_round_1(planned: list[SiteSetup], capsys: pytest.CaptureFixture[str]) -> None:
    for flags, says in REFUSED.items():
        assert train("--encrypt", *flags.split()) == 2, flags
        assert says in capsys.readouterr().err
    assert not planned and not RUNS.exists()


def test_an_encrypted_run_trains_on_other_slabs_each_time(planned: list[SiteSetup], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the sums of a round that was done again without a site, or of another run with the same seed, would differ by its update."""
    seeds: list[int] = []
    real = RoundLoop.run

    def run(self: RoundLoop, *arguments: Any) -> Any:
        seeds.append(self._plan.schedule.seed)
        return real(self, *arguments)

    monkeypatch.setattr(RoundLoop, "run", run)
    assert train() == 0
    assert train("--encrypt") == 0
    assert train("--encrypt", "--overwrite") == 0
    assert seeds[0] == 0 and len(set(seeds)) == 3
    assert load("run.json")["seed"] == 0
