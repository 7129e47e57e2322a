"""Rounds of a federation: what travels, how it is aggregated, resuming, refusals."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.coding import decode
from fedsam_pipeline.federation.codec.payload import unpack
from fedsam_pipeline.flower import client_app
from fedsam_pipeline.flower.exchange import RunStopped
from fedsam_pipeline.flower.messages import AUDIT_HEAD, AUDIT_PREVIOUS, CONFIG, METRICS, PAYLOAD, from_record
from fedsam_pipeline.flower.replies import SiteFailed
from fedsam_pipeline.flower.site_worker import SiteSetup, SiteWorker
from fedsam_pipeline.model import compilation
from fedsam_pipeline.model.build import build_adapted
from fedsam_pipeline.model.trained_files import load_tensors
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.execution import Execution
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from fedsam_pipeline.training.local_trainer import LocalTrainer
from fedsam_pipeline.training.slab_loader import SlabLoader
from tests.flower.federations import SCHEDULE, SITES, Federation, assert_equal, model, setups, start
from tests.training.stores import write_store


def test_one_site_is_the_plain_trainer(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"site_a": 3})
    federated = federation.run()
    setup = federation.setups[0]
    plain = model()
    loader = SlabLoader(write_store(tmp_path / "again", [f"site_a_{i}" for i in range(4)]), setup.train_cases, setup.model.plans)
    trainer = LocalTrainer(plain, loader, setup.model.plans, setup.model.recipe, torch.device("cpu"))
    for round_number in (1, 2, 3):
        trainer.train_round(SCHEDULE, round_number=round_number, site="site_a")
    assert_equal(federated, start(plain))


def test_an_interrupted_run_that_continues_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = Federation(tmp_path / "whole").run()
    first = Federation(tmp_path / "cut")
    first.run_until(3)
    second = Federation(tmp_path / "cut")
    assert second.checkpoints.rounds()[-1] == 2
    assert_equal(second.run(rounds_done=2), whole)


def test_the_aggregate_is_the_mean_weighted_by_training_cases(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    tensors, _ = federation.loop._round(start(federation.adapted), 1)
    replies = {
        str(m.content.config_records[CONFIG]["site"]): decode(
            from_record(m.content.array_records[PAYLOAD]), start(federation.adapted), federation.adapted.manifest
        )
        for m in federation.grid.received
    }
    for name, tensor in tensors.items():
        expected = sum(SITES[site] * arrays[name].numpy().astype(np.float64) for site, arrays in replies.items()) / sum(SITES.values())
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-7)
        assert tensor.dtype == torch.float32


def test_only_the_manifests_federated_tensors_travel(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    expected = {entry.name for entry in federation.adapted.manifest.federated}
    for message in federation.grid.sent + federation.grid.received:
        header, _ = unpack(from_record(message.content.array_records[PAYLOAD]), federation.adapted.manifest)
        assert {name for name, _ in header.tensors} == expected


def test_bytes_are_those_of_the_messages(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    site = federation.records[0].communication["sites"]["site_b"]
    payload = 4 * federation.adapted.manifest.federated_parameters
    assert site["up"]["bytes_payload_before"] == site["down"]["bytes_payload_before"] == payload
    assert site["down"]["bytes_payload_after"] < site["up"]["bytes_payload_after"] < payload
    for way in site.values():
        assert way["tensors"] == len(federation.adapted.manifest.federated)
        assert way["bytes_payload_after"] < way["bytes_message"] < way["bytes_payload_after"] + 1500
        assert way["codec_seconds"] > 0
    assert federation.records[0].progress["bytes_up"] == sum(
        entry["up"]["bytes_message"] for entry in federation.records[0].communication["sites"].values()
    )


def test_scores_come_from_the_received_model_and_the_final_one(tmp_path: Path) -> None:
    federation = Federation(tmp_path, val_every=2)
    tensors = federation.run()
    assert [bool(record.progress["validation"]) for record in federation.records] == [False, False, True]
    assert federation.records[2].progress["validated_round"] == 2
    final = federation.loop.evaluate(tensors)
    assert sorted(final.shared) == sorted(SITES)
    assert all(0 <= score.dice <= 1 for score in final.shared.values())
    assert final.personal is None
    assert final.traffic["message"] == "evaluate.fold"
    assert not (tmp_path / "sites" / "site_a" / "personal").exists()
    report = json.loads((tmp_path / "sites" / "site_a" / "validation.json").read_text())
    assert [row["case"] for row in report["cases"]] == ["site_a_3"]


def test_tensors_that_do_not_travel_stay_at_their_site(tmp_path: Path) -> None:
    values = load_recipe("flap_sam").model_dump()
    patterns = ["*.lora_*", "mask_decoder.output_upscaling.*", "mask_decoder.output_hypernetworks_mlps.*"]
    recipe = Recipe.model_validate(values | {"parameters": {"trained": values["parameters"]["trained"], "federated": patterns}})
    federation = Federation(tmp_path, recipe=recipe)
    federation.run()
    name = "mask_decoder.mask_tokens.weight"
    assert name not in {entry.name for entry in federation.adapted.manifest.federated}
    kept = {}
    for setup in federation.setups:
        kept[setup.site] = CheckpointSeries(setup.state_folder, "state_r").load(3)[f"local/{name}"]
        assert not torch.equal(kept[setup.site], federation.adapted.trained_tensors()[name])
    assert not torch.equal(kept["site_a"], kept["site_b"])


def test_a_site_scores_and_keeps_its_own_model_beside_the_shared_one(tmp_path: Path) -> None:
    recipe = load_recipe("fedsa_lora")
    federation = Federation(tmp_path, recipe=recipe)
    tensors = federation.run()
    final = federation.loop.evaluate(tensors)
    assert final.personal is not None
    assert sorted(final.personal) == sorted(final.shared) == sorted(SITES)
    own, untrained = [entry.name for entry in federation.adapted.manifest.personal], build_adapted_again(recipe)
    assert own
    folders = {setup.site: setup.state_folder / "personal" for setup in federation.setups}
    for site, folder in folders.items():
        adapter = load_tensors(folder / "adapter.safetensors")
        assert all(torch.equal(adapter[name], tensors[name]) for name in tensors)
        assert any(not torch.equal(adapter[name], untrained[name]) for name in own), site
    first, second = (load_tensors(folders[site] / "adapter.safetensors") for site in ("site_a", "site_b"))
    assert any(not torch.equal(first[name], second[name]) for name in own)
    shared = [json.loads((folder.parent / "validation_shared.json").read_text()) for folder in folders.values()]
    personal = [json.loads((folder.parent / "validation.json").read_text()) for folder in folders.values()]
    assert shared != personal


def test_a_site_reads_its_state_once_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, read = CheckpointSeries.load, list[tuple[str, int]]()

    def load(self: CheckpointSeries, round_number: int) -> dict[str, torch.Tensor]:
        read.append((self.folder.name, round_number))
        return real(self, round_number)

    monkeypatch.setattr(CheckpointSeries, "load", load)
    federation = Federation(tmp_path, recipe=load_recipe("fedsa_lora"), val_every=1)
    federation.loop.evaluate(federation.run())
    assert sorted(read) == [(site, number) for site in SITES for number in (1, 2, 3)]  # rounds 2 and 3, the final scores


def build_adapted_again(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The trained tensors at round 0."""
    return build_adapted("tiny_random", recipe, rank=2, num_classes=3, image_size=28, weights=None).trained_tensors()


def test_each_machine_notes_how_it_carries_out_a_step_and_parts_of_it_train_the_same(tmp_path: Path) -> None:
    whole = Federation(tmp_path / "whole")
    expected = whole.run()
    known = {setup.site: Execution.load(setup.execution_file) for setup in whole.setups}
    assert all(found.micro_batch == found.batch for found in known.values())
    divided = Federation(tmp_path / "divided")
    for setup in divided.setups:
        known[setup.site].model_copy(update={"micro_batch": 1, "gradient_checkpointing": True}).save(setup.execution_file)
    for name, tensor in divided.run().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0.05, atol=5e-3)  # bfloat16 where the machine has it
    assert Execution.load(divided.setups[0].execution_file).micro_batch == 1


def test_a_site_that_compiles_its_encoder_trains_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")  # traced, but not put into C++
    updates = []
    for compiled in (False, True):
        worker = SiteWorker(replace(setups(tmp_path / str(compiled))[0], compiled=compiled))
        worker.take(worker.held(0), {})
        updates.append(worker.train(SCHEDULE, 1)[0].decoded)
    for name, tensor in updates[0].items():
        torch.testing.assert_close(updates[1][name], tensor, rtol=0.05, atol=5e-3)  # bfloat16 where the machine has it


def test_a_site_refuses_a_plan_it_did_not_agree_to(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.loop._plan.agreement["plan_sha256"] = "f" * 64
    with pytest.raises(SiteFailed, match=r"reports agreement_broken, id [0-9a-f]{8}: see sites/site_[abc]/logs/site.log"):
        federation.run()


def test_a_site_refuses_a_configuration_it_did_not_agree_to(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.loop._plan.agreement["configuration"] = "triplanar"
    with pytest.raises(SiteFailed, match="reports agreement_broken"):
        federation.run()


def test_a_failure_tells_the_wire_nothing_but_a_code(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    (tmp_path / "store" / "site_b" / "site_b_0.b2nd").unlink()
    (tmp_path / "store" / "site_b" / "site_b_1.b2nd").unlink()
    with pytest.raises(SiteFailed, match="site_b reports bad_input"):
        federation.run()
    reply = next(m for m in federation.grid.received if m.content.config_records[CONFIG]["site"] == "site_b")
    assert set(reply.content.config_records[CONFIG]) == {"site", "failure", "failure_id", AUDIT_HEAD, AUDIT_PREVIOUS}
    everything = str(dict(reply.content.config_records[CONFIG]))
    assert "site_b_0" not in everything
    assert str(tmp_path) not in everything
    log = (tmp_path / "sites" / "site_b" / "logs" / "site.log").read_text()
    assert str(reply.content.config_records[CONFIG]["failure_id"]) in log
    assert "site_b_" in log


def test_an_answer_for_another_round_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path)
    pull = federation.grid.pull_messages

    def replaying(ids: set[str]) -> list[Message]:
        replies = list(pull(ids))
        replies[0].content.config_records[CONFIG]["round"] = 7
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", replaying)
    with pytest.raises(SiteFailed, match="answers for another run or round"):
        federation.run()


@pytest.mark.parametrize(("key", "value"), [("loss", float("nan")), ("num_examples", -1), ("num_examples", 10**12)])
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: float) -> None:
    def lie(content: RecordDict) -> None:
        content.metric_records[METRICS][key] = value

    assert refused_by(tmp_path, monkeypatch, lie) in ("it comes without loss, or with what is not finite", "num_examples is not a count")


def test_an_update_that_lacks_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(content: RecordDict) -> None:
        del content[PAYLOAD]

    def silent(content: RecordDict) -> None:
        del content.metric_records[METRICS]["loss"]

    assert refused_by(tmp_path / "a", monkeypatch, empty) == "it comes without payload"
    assert refused_by(tmp_path / "b", monkeypatch, silent) == "it comes without loss, or with what is not finite"


def refused_by(folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[RecordDict], None]) -> str:
    """Why the updates of a site are refused whose answers are changed on their way; all rounds go on without it."""
    federation = Federation(folder)
    pull = federation.grid.pull_messages

    def changed(ids: set[str]) -> list[Message]:
        replies = list(pull(ids))
        for reply in replies:
            if reply.content.config_records[CONFIG]["site"] == "site_b":
                change(reply.content)
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", changed)
    federation.run()
    assert [list(record.progress["refused"]) for record in federation.records] == 3 * [["site_b"]]
    for record in federation.records:  # what was refused has travelled all the same
        assert sorted(record.communication["sites"]) == sorted(SITES)
        assert record.communication["sites"]["site_b"]["up"]["bytes_message"] > 0
        assert record.progress["bytes_up"] == sum(each["up"]["bytes_message"] for each in record.communication["sites"].values())
    return str(federation.records[0].progress["refused"]["site_b"])


def test_a_site_that_cannot_be_found_answers_with_a_code(tmp_path: Path) -> None:
    federation = Federation(tmp_path)

    def lost(context: Context, content: RecordDict) -> SiteSetup:
        raise KeyError("/home/hospital/secret")

    federation.grid._app = client_app.make_client_app(lost)
    with pytest.raises(SiteFailed, match="unknown reports internal"):
        federation.run()


def test_a_site_that_lost_its_state_says_so(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    series = CheckpointSeries(tmp_path / "sites" / "site_a", "state_r")
    series.save(7, {})
    with pytest.raises(SiteFailed, match="site_a reports state_missing"):
        federation.loop._round(start(federation.adapted), 2)


def test_missing_and_doubled_answers_end_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path)
    pull = federation.grid.pull_messages
    federation.loop._plan = replace(federation.loop._plan, timeout=0.3)
    monkeypatch.setattr(federation.grid, "pull_messages", lambda ids: list(pull(["m1", "m2"])) if "m1" in ids else [])
    with pytest.raises(SiteFailed, match="1 of 3 sites did not answer"):
        federation.run()

    def doubling(ids: set[str]) -> list[Message]:
        replies = list(pull(ids))
        replies[0].content.config_records[CONFIG]["site"] = replies[1].content.config_records[CONFIG]["site"]
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", doubling)
    with pytest.raises(SiteFailed, match="two nodes answer for the same site"):
        federation.run()


def test_a_run_that_is_told_to_stop_does_not_wait_for_its_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path)
    monkeypatch.setattr(federation.grid, "pull_messages", lambda ids: [])
    federation.loop._stop.set()
    with pytest.raises(RunStopped):
        federation.run()


def test_scores_that_cannot_be_read_end_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path)
    pull = federation.grid.pull_messages

    def garbling(ids: set[str]) -> list[Message]:
        replies = list(pull(ids))
        replies[0].content.config_records[CONFIG]["validation"] = '{"site_a": {"dice": 1}}'
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", garbling)
    with pytest.raises(SiteFailed, match=r"the scores of site_[abc] cannot be read \(KeyError\)"):
        federation.run()


def test_metrics_hold_numbers_of_the_round(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    reply = federation.grid.received[0]
    assert set(reply.content.metric_records[METRICS]) == {
        *("num_examples", "loss", "learning_rate", "seconds", "data_seconds"),
        *("decode_seconds", "encode_seconds", "validation_seconds", "busy_seconds"),
    }


def test_a_site_that_annotated_one_class_trains_and_is_scored_with_it_alone(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "as_background"):
        write_store(folder / "store" / "site_b", [f"site_b_{i}" for i in range(3)], seed=1, site="site_b", offset=0.3, hidden=2)
    federation = Federation(tmp_path, val_every=2)
    federation.grid._setups[1] = replace(federation.grid._setups[1], annotated={"site_b": (1,)})
    tensors = federation.run()
    scores = federation.loop.evaluate(tensors).shared
    assert np.isnan(scores["site_b"].classes[1])
    assert scores["site_b"].dice == scores["site_b"].classes[0]
    assert scores["site_b"].excluded is not None and scores["site_b"].excluded.tolist() == [0, 1]
    assert scores["site_a"].excluded is None and not np.isnan(scores["site_a"].classes).any()
    validation = federation.records[2].progress["validation"]
    assert validation["site_b"]["excluded"] == {"organ": 0, "lesion": 1} and validation["site_b"]["classes"]["lesion"] is None
    report = json.loads((tmp_path / "sites" / "site_b" / "validation.json").read_text())
    assert [row is None for row in report["cases"][0]["tp_fp_fn"]] == [False, True]
    assert all("annotated" not in str(dict(message.content.config_records[CONFIG])) for message in federation.grid.sent)

    as_background = Federation(tmp_path / "as_background").run()
    assert any(not torch.equal(as_background[name], tensor) for name, tensor in tensors.items())


def test_a_pooled_site_scores_each_owner_by_what_it_annotated_and_skips_ignored_voxels(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"pooled": 3})
    store = write_store(
        tmp_path / "store" / "pooled", [f"pooled_{i}" for i in range(4)], ignored=(slice(None), slice(12, None), slice(None))
    )
    setup = replace(
        federation.setups[0],
        val_cases=("pooled_2", "pooled_3"),
        train_cases=("pooled_0", "pooled_1"),
        owner={"pooled_0": "a", "pooled_1": "b", "pooled_2": "a", "pooled_3": "b"},
        annotated={"b": (1,)},
    )
    federation.grid._setups[0] = setup
    tensors = federation.run()
    scores = federation.loop.evaluate(tensors).shared
    assert scores["a"].excluded is None and scores["b"].excluded is not None
    assert np.isnan(scores["b"].classes[1])
    report = json.loads((tmp_path / "sites" / "pooled" / "validation.json").read_text())
    table = next(row["tp_fp_fn"] for row in report["cases"] if row["case"] == "pooled_2")
    labels = store.open("pooled_2").labels[:]
    assert [tp + fn for tp, _, fn in table] == [int((labels == 1).sum()), 0]
    assert all(sum(row) <= (labels != -1).sum() for row in table)


def test_regions_are_scored_where_all_their_classes_are_annotated(tmp_path: Path) -> None:
    regions = {"organ_with_lesions": (1, 2), "lesion": (2,)}
    setup, *_ = (replace(each, regions=regions, annotated={"b": (2,)}) for each in setups(tmp_path, {"pooled": 1}))
    setup = replace(setup, val_cases=("pooled_0", "pooled_1"), owner={"pooled_0": "a", "pooled_1": "b"})
    worker = SiteWorker(setup)
    worker.take(start(model()), {})
    scores = worker.evaluate(rounds_done=0, report=tmp_path / "report.json")
    assert scores["b"].excluded is not None and scores["b"].excluded.tolist() == [1, 0] and np.isnan(scores["b"].classes[0])
    rows = {row["case"]: row["tp_fp_fn"] for row in json.loads((tmp_path / "report.json").read_text())["cases"]}
    labels = CaseStore(setup.store_folder).open("pooled_0").labels[:]
    assert [tp + fn for tp, _, fn in rows["pooled_0"]] == [int((labels > 0).sum()), int((labels == 2).sum())]
    assert rows["pooled_1"][0] is None and rows["pooled_1"][1] is not None
