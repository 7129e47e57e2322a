"""``fedsam_train_federated --init FOLDER --protocol local --interpolate SHARE``: a site's model between the federation's and its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsam_pipeline.entrypoints.export_model import main as export_model
from fedsam_pipeline.entrypoints.train_federated import main
from fedsam_pipeline.model.bundle import load_bundle
from fedsam_pipeline.model.trained_files import load_tensors
from fedsam_pipeline.pipeline.interpolation import interpolated
from tests.pipeline.comparisons import NAME

ALONE = ["--protocol", "local", "--rounds", "2", "--lr", "0.01"]


@pytest.fixture
def start(workplace: Path) -> Path:
    """The trained fold of a federation."""
    assert main([]) == 0
    (fold,) = workplace.glob(f"results/{NAME}/default__plans__main/federated__*/fold_0")
    return fold


def adapted(root: Path, run: str) -> Path:
    (fold,) = root.glob(f"results/{NAME}/default-from_*__plans__main/{run}/fold_0")
    return fold


def test_what_is_kept_lies_between_the_start_and_what_was_trained(start: Path, tmp_path: Path) -> None:
    assert main([*ALONE, "--init", str(start)]) == 0
    assert main([*ALONE, "--init", str(start), "--interpolate", "0.25"]) == 0
    whole, quarter = (adapted(tmp_path, f"local-site_a__fedavg-lr0.01{name}__seed0") for name in ("", "-interpolate0.25"))
    before, trained, kept = (load_tensors(fold / "adapter.safetensors") for fold in (start, whole, quarter))
    assert any(not torch.equal(before[name], trained[name]) for name in before)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, before[name] + 0.25 * (trained[name] - before[name]), rtol=1e-5, atol=1e-6)
    load_bundle(quarter)
    losses = [
        [line["sites"] for line in map(json.loads, (fold / "progress.jsonl").read_text(encoding="utf-8").splitlines()) if "sites" in line]
        for fold in (whole, quarter)
    ]
    assert [site["site_a"]["loss"] for site in losses[0]] == [site["site_a"]["loss"] for site in losses[1]]  # nothing changes in training
    state = json.loads((quarter / "run.json").read_text(encoding="utf-8"))
    assert state["interpolate"] == 0.25 and state["final"]["sites"].keys() == {"site_a"}
    whole_state = json.loads((whole / "run.json").read_text(encoding="utf-8"))
    assert whole_state["interpolate"] == 1 and whole_state["final"]["sites"] != state["final"]["sites"]  # what is kept is what is scored


def test_a_model_that_is_handed_on_says_what_it_began_with(start: Path, tmp_path: Path) -> None:
    assert main([*ALONE, "--init", str(start), "--interpolate", "0.25"]) == 0
    fold = adapted(tmp_path, "local-site_a__fedavg-lr0.01-interpolate0.25__seed0")
    begun = json.loads((fold / "run.json").read_text(encoding="utf-8"))["start_sha256"]
    said = f"Fold 0 began with the trained adapter of SHA-256 {begun}, and lies 0.25 of the way from it to what was trained."
    for trained, present in ((start, False), (fold, True)):
        assert export_model(["-m", str(trained.parent), "-o", "model.zip"]) == 0
        shutil.unpack_archive("model.zip", "unpacked")
        (card,) = Path("unpacked").rglob("MODEL_CARD.md")
        (record,) = Path("unpacked").rglob("training.json")
        assert (said in card.read_text(encoding="utf-8")) is present
        expected = {"adapter_sha256": begun, "interpolate": 0.25} if present else None
        assert json.loads(record.read_text(encoding="utf-8")).get("start") == expected
        shutil.rmtree("unpacked")
        Path("model.zip").unlink()


def test_an_interrupted_run_is_interpolated_once(start: Path, tmp_path: Path) -> None:
    flags = [*ALONE, "--init", str(start), "--interpolate", "0.25"]
    assert main(flags) == 0
    fold = adapted(tmp_path, "local-site_a__fedavg-lr0.01-interpolate0.25__seed0")
    expected = load_tensors(fold / "adapter.safetensors")
    (fold / "bundle.json").unlink()  # stopped after the last round's checkpoint
    assert main([*flags, "--c"]) == 0
    found = load_tensors(fold / "adapter.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--protocol", "local"], "--protocol local, without --init"),
        (["--init", "START"], "--protocol federated, with --init"),
        (["--init", "START", "--protocol", "centralized"], "--protocol centralized, with --init"),
    ],
)
def test_without_a_start_or_with_several_sites_it_is_refused(
    start: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    flags = [str(start) if flag == "START" else flag for flag in flags]
    assert main([*flags, "--interpolate", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "--interpolate is for a site that goes on alone" in said and says in said


def test_tensors_that_stay_at_their_site_have_no_start(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-r", "fedsa_lora"]) == 0
    (shared,) = tmp_path.glob(f"results/{NAME}/fedsa_lora__plans__main/federated__*/fold_0")
    capsys.readouterr()
    assert main(["-r", "fedsa_lora", "--init", str(shared), "--protocol", "local", "--interpolate", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "--interpolate needs a model that is shared as a whole" in said and "tensors that stay at their site, such as" in said
    assert not list(tmp_path.glob(f"results/{NAME}/fedsa_lora-from_*/*/fold_0/run.json"))


@pytest.mark.parametrize("share", ["0", "1.5", "nan", "half"])
def test_a_share_is_above_zero_and_at_most_one(share: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--interpolate", share])
    assert ended.value.code == 2


TENSORS = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3).map(torch.tensor)


@given(TENSORS, TENSORS, st.floats(0, 1))
def test_the_ends_are_the_two_models_and_the_rest_lies_between(start: Tensor, trained: Tensor, share: float) -> None:
    def at(part: float) -> Tensor:
        return interpolated({"t": start, "other": start}, {"t": trained}, part)["t"]

    assert torch.equal(at(0), start) and torch.equal(at(1), trained)
    torch.testing.assert_close(at(share), start + share * (trained - start), rtol=1e-5, atol=1e-4)
    slack = 1e-4
    assert bool((torch.minimum(start, trained) - slack <= at(share)).all() and (at(share) <= torch.maximum(start, trained) + slack).all())
