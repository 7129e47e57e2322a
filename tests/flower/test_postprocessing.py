"""Choosing postprocessing over a federation: what sites tell, from when on, and what the server believes."""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedsam_pipeline.flower.exchange import RunStopped
from fedsam_pipeline.flower.kept_masks import KeptMasks
from fedsam_pipeline.flower.messages import (
    AUDIT_HEAD,
    AUDIT_PREVIOUS,
    CANDIDATES,
    CONFIG,
    DECIDED,
    METRICS,
    QUERY_POSTPROCESSING,
    SUMS,
    message_bytes,
)
from fedsam_pipeline.flower.postprocessing_query import PostprocessingQuery
from fedsam_pipeline.flower.site_postprocessing import answer
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.model.build import ModelSetup
from fedsam_pipeline.postprocessing.candidates import questions
from fedsam_pipeline.postprocessing.choice import choose
from fedsam_pipeline.postprocessing.deltas import DeltaSums
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.postprocessing import MaskRule
from fedsam_pipeline.specs.recipe import load_recipe
from tests.conftest import make_tiny_plans
from tests.flower.federations import Federation
from tests.training.stores import write_store

SITES = {"site_a": 6, "site_b": 7, "site_c": 2}
LABELS = {"background": 0, "organ": 1, "lesion": 2}
GROUPS = {"organ": (1,), "lesion": (2,)}
VOLUMES = {"organ": (3.0, 10.0), "lesion": (3.0,)}
LARGEST = MaskRule(kind="largest_component", label="organ")


def predicted(reference: np.ndarray, seed: int) -> np.ndarray:
    """The reference with a hole in the organ, a speck of each class, and one site's lesions in two parts."""
    mask: np.ndarray = np.maximum(reference, 0).astype(np.uint8)
    generator = np.random.default_rng(seed)
    mask[3, 7, 8] = 0
    mask[0, 22, int(generator.integers(0, 20))] = 1
    mask[5, int(generator.integers(13, 20)), 24] = 2
    if seed % 3 == 0:
        mask[2:5, 16] = 0
    return mask


def sites_with_masks(folder: Path, sites: Mapping[str, int] = SITES, floor: int = 5) -> list[SiteSetup]:
    """Sites after their final evaluation: so many validation cases each, and masks of them."""
    made = []
    for number, (site, count) in enumerate(sites.items()):
        cases = tuple(f"{site}_{i}" for i in range(count))
        write_store(folder / "store" / site, list(cases), seed=number, site=site)
        setup = SiteSetup(
            site=site,
            store_folder=folder / "store" / site,
            train_cases=(),
            val_cases=cases,
            owner=dict.fromkeys(cases, site),
            model=ModelSetup(make_tiny_plans(), load_recipe("flap_sam"), None),
            state_folder=folder / "fold_0" / "sites" / site,
            device="cpu",
            num_threads=1,
            execution_file=folder / "execution" / f"{site}.json",
            privacy_floor=floor,
        )
        keep(setup, seed=100 * number)
        made.append(setup)
    return made


def keep(setup: SiteSetup, seed: int) -> None:
    """Masks of the fold's validation cases."""
    store, masks = CaseStore(setup.store_folder), KeptMasks(setup.state_folder)
    for number, case in enumerate(setup.val_cases):
        masks.add(case, predicted(np.asarray(store.open(case).labels[:]), seed + number))
    masks.finish(setup.model.plans.preprocessing_sha256(), {case: setup.owner[case] for case in setup.val_cases})


class Asked(Federation):
    """A federation whose sites are asked at once; nothing is trained."""

    def __init__(self, setups: list[SiteSetup], *, most_cases: int = 20) -> None:
        super().__init__(setups[0].store_folder.parent / "untrained", {setup.site: 1 for setup in setups})
        self.grid._setups = setups
        plan = replace(self.loop._plan, agreement=setups[0].model.agreement(), timeout=0.5)
        counts = dict.fromkeys((setup.site for setup in setups), most_cases)
        self.query = PostprocessingQuery(self.grid, plan, counts, self.heads, threading.Event())

    def choose(self) -> tuple[tuple[MaskRule, ...], dict[MaskRule, dict[str, float]]]:
        steps, decisions = choose(questions(LABELS, GROUPS, VOLUMES), self.query.ask, LABELS, GROUPS)
        return steps, {each.rule: {name: found.delta_sum for name, found in each.classes.items()} for each in decisions}

    def change(self, site: str, change: Callable[[RecordDict], None], monkeypatch: pytest.MonkeyPatch) -> None:
        """Alters the answers of a site on their way."""
        pull = self.grid.pull_messages

        def changed(ids: set[str]) -> list[Message]:
            replies = list(pull(ids))
            for reply in replies:
                if reply.content.config_records[CONFIG]["site"] == site:
                    change(reply.content)
            return replies

        monkeypatch.setattr(self.grid, "pull_messages", changed)


def test_the_federation_chooses_what_one_site_with_all_cases_would(tmp_path: Path) -> None:
    setups = sites_with_masks(tmp_path, floor=1)
    federation = Asked(setups)
    steps, deltas = federation.choose()
    kinds = {(step.kind, step.label) for step in steps}
    assert ("fill_holes", "organ") in kinds and ("largest_component", "organ") in kinds
    assert federation.query.told == set(SITES) and not federation.query.refused

    everything = sum(SITES.values())
    cases = [case for setup in setups for case in setup.val_cases]
    pooled = replace(
        setups[0],
        site="pooled",
        store_folder=tmp_path / "pooled",
        val_cases=tuple(cases),
        owner={case: case[:6] for case in cases},
        state_folder=tmp_path / "pooled_state",
    )
    for setup in setups:
        for path in setup.store_folder.iterdir():
            (tmp_path / "pooled").mkdir(exist_ok=True)
            (tmp_path / "pooled" / path.name).write_bytes(path.read_bytes())
        for case in setup.val_cases:
            mask = KeptMasks(setup.state_folder).read(case, CaseStore(setup.store_folder).open(case).labels.shape)
            KeptMasks(pooled.state_folder).add(case, mask)
    KeptMasks(pooled.state_folder).finish(pooled.model.plans.preprocessing_sha256(), pooled.owner)
    alone = Asked([pooled])
    expected, sums = alone.choose()
    assert steps == expected
    assert deltas.keys() == sums.keys()
    for rule, row in deltas.items():
        assert row == pytest.approx(sums[rule], abs=1e-9)
    assert answer(pooled, (), [LARGEST]).cases == {"organ": everything, "lesion": everything}


def test_a_site_below_the_floor_tells_nothing_and_the_others_choose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fedsam_pipeline"):
        federation = Asked(sites_with_masks(tmp_path))
        steps, _ = federation.choose()
    assert steps
    assert federation.query.told == {"site_a", "site_b"}
    silent = [message for message in federation.grid.received if message.content.config_records[CONFIG]["site"] == "site_c"]
    for message in silent:
        told = json.loads(str(message.content.config_records[CONFIG][SUMS]))
        assert told["cases"] == {} and not any(told["deltas"])
        assert dict(message.content.metric_records[METRICS]) == {"num_examples": 0}
    assert "2 patients of fold 0 wait, fewer than 5" in (tmp_path / "fold_0/sites/site_c/logs/site.log").read_text()


def test_the_floor_counts_patients(tmp_path: Path) -> None:
    (setup,) = sites_with_masks(tmp_path, {"site_a": 6})
    twins = replace(setup, patients={"site_a_0": "p", "site_a_1": "p"})
    assert answer(twins, (), [LARGEST]).cases == {"organ": 6, "lesion": 6}
    (setup,) = sites_with_masks(tmp_path / "again", {"site_a": 6})
    few = replace(setup, patients={"site_a_0": "p", "site_a_1": "p", "site_a_2": "p"})
    assert answer(few, (), [LARGEST]) == DeltaSums({}, ({},))


def folds_of(tmp_path: Path, sizes: Mapping[str, int]) -> dict[str, SiteSetup]:
    """One site in several folds of a run, each with validation cases of its own; the masks are kept by ``keep``."""
    whole = sites_with_masks(tmp_path, {"site_a": sum(sizes.values())})[0]
    KeptMasks(whole.state_folder).clear()
    folders = {fold: tmp_path / f"fold_{fold}" / "sites" / "site_a" for fold in sizes}
    made, start = {}, 0
    for fold, size in sizes.items():
        made[fold] = replace(
            whole,
            fold=fold,
            val_cases=whole.val_cases[start : start + size],
            state_folder=folders[fold],
            other_folds={other: folder for other, folder in folders.items() if other != fold},
        )
        start += size
    return made


def test_folds_of_few_cases_wait_for_each_other_and_then_stay_together(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, {"0": 2, "1": 3, "2": 2, "3": 5})

    def told(fold: str) -> int:
        return answer(folds[fold], (), [LARGEST]).cases.get("organ", 0)

    found = []
    for fold in folds:
        keep(folds[fold], seed=int(fold))
        found.append(told(fold))
    assert found == [0, 5, 5, 12]  # fold 2 waits: with it a difference would tell of 2 cases; then it comes with fold 3
    assert [KeptMasks(folds[fold].state_folder).index().released_with for fold in folds] == [("0", "1"), ("0", "1"), ("2", "3"), ("2", "3")]  # type: ignore[union-attr]
    assert told("0") == 12  # the same for every question, whoever asks
    keep(folds["1"], seed=9)  # trained again: what went with it waits again, the others stay
    assert told("1") == 12
    KeptMasks(folds["0"].state_folder).clear()
    assert told("1") == 7


def test_masks_of_another_plan_are_left_out(tmp_path: Path) -> None:
    folds = folds_of(tmp_path, {"0": 5, "1": 5})
    for fold in folds.values():
        keep(fold, seed=0)
    masks = KeptMasks(folds["0"].state_folder)
    index = masks.index()
    assert index is not None
    masks.note(index.model_copy(update={"preprocessing_sha256": "f" * 64}))
    assert answer(folds["1"], (), [LARGEST]).cases == {"organ": 5, "lesion": 5}


def test_what_a_site_did_not_annotate_is_not_told(tmp_path: Path) -> None:
    (setup,) = sites_with_masks(tmp_path, {"site_a": 6})
    found = answer(replace(setup, annotated={"site_a": (1,)}), (), [LARGEST])
    assert found.cases == {"organ": 6} and found.deltas[0].keys() == {"organ"}
    federation = Asked([replace(setup, annotated={"site_a": (1,)})])
    steps, _ = federation.choose()
    assert MaskRule(kind="largest_component") not in steps  # nobody knows what it does to lesions
    assert LARGEST in steps


def test_only_sums_cross_the_wire(tmp_path: Path) -> None:
    setups = sites_with_masks(tmp_path)
    federation = Asked(setups)
    federation.choose()
    for message in federation.grid.sent:
        config = message.content.config_records[CONFIG]
        assert set(config) == {*setups[0].model.agreement(), "run_id", "round", "attempt", DECIDED, CANDIDATES}
        assert set(message.content) == {CONFIG}
    for message in federation.grid.received:
        config = message.content.config_records[CONFIG]
        assert set(config) == {"run_id", "round", "attempt", "site", SUMS, AUDIT_HEAD, AUDIT_PREVIOUS} and set(message.content) == {
            CONFIG,
            METRICS,
        }
        told = json.loads(str(config[SUMS]))
        assert told.keys() == {"cases", "deltas"}
        assert "site_a_0" not in str(config[SUMS]) and str(tmp_path) not in str(dict(config))


def test_bytes_are_counted_question_by_question(tmp_path: Path) -> None:
    federation = Asked(sites_with_masks(tmp_path))
    federation.choose()
    asked = questions(LABELS, GROUPS, VOLUMES)
    assert [entry["message"] for entry in federation.query.traffic] == [QUERY_POSTPROCESSING] * len(asked)
    first = federation.query.traffic[0]
    assert list(first["sites"]) == sorted(SITES) and first["seconds"] > 0
    sent, received = federation.grid.sent[0], federation.grid.received[0]
    site = str(received.content.config_records[CONFIG]["site"])
    assert first["sites"][site]["down"]["bytes_message"] == message_bytes(sent.content)
    assert first["sites"][site]["up"]["bytes_message"] == message_bytes(received.content)
    assert first["sites"][site]["up"]["tensors"] == first["sites"][site]["down"]["bytes_payload_after"] == 0


def told(change: Callable[[dict[str, Any]], None]) -> Callable[[RecordDict], None]:
    """A change of what a site says, in a form that it could say."""

    def changed(content: RecordDict) -> None:
        value = json.loads(str(content.config_records[CONFIG][SUMS]))
        change(value)
        content.config_records[CONFIG][SUMS] = json.dumps(value)

    return changed


def config(key: str, value: Any) -> Callable[[RecordDict], None]:
    def changed(content: RecordDict) -> None:
        content.config_records[CONFIG][key] = value

    return changed


LIES: list[tuple[Callable[[RecordDict], None], str]] = [
    (told(lambda value: value["deltas"][0].update(organ=float("nan"))), "a sum of nan over 7 cases of organ"),
    (told(lambda value: value["deltas"][0].update(liver=1.0)), "it sums over other classes than it counts"),
    (told(lambda value: value["cases"].update(organ=21)), "21 cases of organ, the site has 20"),
    (told(lambda value: value.update(names=["site_b_0"])), "it is no answer of cases and deltas"),
    (told(lambda value: value["deltas"].pop()), "it does not answer 1 rules"),
    (config(SUMS, "{"), "it cannot be read (JSONDecodeError)"),
    (config(SUMS, "[" * 100_000), "it cannot be read (ValueError)"),
    (config(SUMS, " " * (1 << 20) + "{}"), "it comes without sums, or with too many"),
    (config(SUMS, 3.0), "it comes without sums, or with too many"),
    (config("round", 7), "it is for another run or round"),
    (config("failure", "internal"), "it reports internal, id None: see sites/site_b/logs/site.log"),
]


@pytest.mark.parametrize(("change", "reason"), LIES)
def test_an_answer_that_cannot_be_is_refused_and_the_others_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: Callable[[RecordDict], None], reason: str
) -> None:
    sites = {"site_a": 6, "site_b": 7}
    expected, _ = Asked(sites_with_masks(tmp_path / "alone", {"site_a": 6})).choose()
    federation = Asked(sites_with_masks(tmp_path / "both", sites))
    federation.change("site_b", change, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="fedsam_pipeline"):
        steps, _ = federation.choose()
    assert federation.query.refused == {"site_b": reason}
    assert steps == expected
    assert f"the answer of site_b was refused, the choice goes on without it: {reason}" in caplog.text
    assert list(federation.query.traffic[0]["sites"]) == ["site_a", "site_b"]
    assert list(federation.query.traffic[1]["sites"]) == ["site_a"]  # it is not asked again


def test_who_claims_to_be_another_or_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, reason in (("site_a", "two nodes answer for site_a"), ("site_z", "there is no site 'site_z'")):
        federation = Asked(sites_with_masks(tmp_path / name, {"site_a": 6, "site_b": 7}))
        federation.change("site_b", config("site", name), monkeypatch)
        federation.query.ask((), (LARGEST,))
        assert list(federation.query.refused.values()) == [reason]


def test_a_site_that_is_silent_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Asked(sites_with_masks(tmp_path, {"site_a": 6, "site_b": 7}))
    pull = federation.grid.pull_messages
    monkeypatch.setattr(federation.grid, "pull_messages", lambda ids: list(pull(set(ids) & {"m1"})))
    assert federation.query.ask((), (LARGEST,)).cases == {"organ": 6, "lesion": 6}
    assert federation.query.refused == {"node 2": "it did not answer"}


def test_a_run_that_is_told_to_stop_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Asked(sites_with_masks(tmp_path, {"site_a": 6}))
    monkeypatch.setattr(federation.grid, "pull_messages", lambda ids: [])
    federation.query._stop.set()
    with pytest.raises(RunStopped):
        federation.query.ask((), (LARGEST,))


def test_a_site_answers_only_of_the_plan_it_agreed_to_and_of_classes_it_knows(tmp_path: Path) -> None:
    federation = Asked(sites_with_masks(tmp_path, {"site_a": 6}))
    federation.query._plan.agreement["plan_sha256"] = "f" * 64
    federation.query.ask((), (LARGEST,))
    assert federation.query.refused["site_a"].startswith("it reports agreement_broken")
    federation = Asked(sites_with_masks(tmp_path / "again", {"site_a": 6}))
    federation.query.ask((), (MaskRule(kind="fill_holes", label="liver"),))
    assert federation.query.refused["site_a"].startswith("it reports bad_input")
