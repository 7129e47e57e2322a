"""Asking sites for sums: honest ones are read, the others are refused by name, and no text of an exception crosses."""

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from flwr.app import ConfigRecord

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.evaluation.dice_sums import Cell, DiceSums
from fedsam_pipeline.federation.audit_chain import START, Head
from fedsam_pipeline.federation.audit_heads import HEADS_FILE, AuditHeads
from fedsam_pipeline.flower.configuration_query import QUERY_ID, Question, ask_sites, make_query_app
from fedsam_pipeline.flower.messages import AUDIT_HEAD, AUDIT_PREVIOUS, CONFIG, QUERY_CONFIGURATIONS, SUMS
from tests.flower.grids import DirectGrid

TOLD = DiceSums({"lora": {"liver": Cell(4.0, 6)}, "lora + decoder": {"liver": Cell(4.5, 6)}})
QUESTION = Question(tuple(TOLD.cells), ("liver", "kidney"), {"site_a": 6, "site_b": 7})


@dataclass(frozen=True)
class Site:
    """A site that answers without any model."""

    site: str
    state_folder: Path
    configurations: tuple[str, ...] = QUESTION.configurations
    broken: bool = False
    num_threads: int = 1

    def scored(self) -> DiceSums:
        if self.broken:
            raise FedsamError("the mask of patient_mueller_3 is missing")
        return TOLD


def asked(*sites: Site, change: Callable[[ConfigRecord], None] | None = None) -> tuple[dict[str, DiceSums], dict[str, str], DirectGrid]:
    grid = DirectGrid(sites, make_query_app)
    if change is not None:
        pull = grid.pull_messages

        def changed(ids):  # type: ignore[no-untyped-def]
            replies = list(pull(ids))
            for reply in replies:
                if reply.metadata.src_node_id == 2:
                    change(reply.content.config_records[CONFIG])
            return replies

        grid.pull_messages = changed  # type: ignore[method-assign]
    return *ask_sites(grid, QUESTION, AuditHeads(sites[0].state_folder.parent), threading.Event()), grid


def test_a_claim_to_be_another_spoils_no_later_question(tmp_path: Path) -> None:
    sites = Site("site_a", tmp_path / "a"), Site("site_b", tmp_path / "b")

    def lie(config: ConfigRecord) -> None:
        config["site"], config[AUDIT_HEAD], config[AUDIT_PREVIOUS] = "site_a", str(Head(9_999_999_999, "e" * 64)), str(START)

    _, refused, _ = asked(*sites, change=lie)
    assert list(refused.values()) == ["two nodes answer for site_a"]
    assert not (tmp_path / HEADS_FILE).exists()
    for _ in range(2):
        told, refused, _ = asked(*sites)
        assert told.keys() == {"site_a", "site_b"} and not refused


def test_every_site_is_asked_once(tmp_path: Path) -> None:
    told, refused, grid = asked(Site("site_a", tmp_path / "a"), Site("site_b", tmp_path / "b"))
    assert list(told.items()) == [("site_a", TOLD), ("site_b", TOLD)] and not refused
    assert [message.metadata.message_type for message in grid.sent] == 2 * [QUERY_CONFIGURATIONS]


def test_a_failure_is_a_code_and_the_reason_stays(tmp_path: Path) -> None:
    told, refused, grid = asked(Site("site_a", tmp_path / "a"), Site("site_b", tmp_path / "b", broken=True))
    assert list(told) == ["site_a"]
    assert "it reports bad_input" in next(iter(refused.values()))
    assert not [message for message in grid.received if "mueller" in str(message.content)]
    assert "patient_mueller_3" in (tmp_path / "b" / "logs" / "site.log").read_text(encoding="utf-8")


def test_a_site_that_has_other_models_says_so(tmp_path: Path) -> None:
    _, refused, _ = asked(Site("site_a", tmp_path / "a"), Site("site_b", tmp_path / "b", configurations=("decoder",)))
    assert "agreement_broken" in next(iter(refused.values()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.update({"site": "site_c"}), "there is no site 'site_c'"),
        (lambda config: config.update({"site": "site_a"}), "two nodes answer for site_a"),
        (lambda config: config.update({QUERY_ID: "0"}), "it is for another question"),
        (lambda config: config.update({SUMS: 3}), "it comes without sums"),
        (lambda config: config.pop(SUMS), "it comes without sums"),
        (lambda config: config.update({SUMS: "[" * 100_000}), "it cannot be read"),
        (lambda config: config.update({SUMS: "["}), "it cannot be read"),
        (lambda config: config.update({SUMS: " " * (1 << 21)}), "with too many"),
        (lambda config: config.update({SUMS: json.dumps({})}), "does not answer the configurations"),
        (
            lambda config: config.update({SUMS: json.dumps(DiceSums({n: {"liver": Cell(1.0, 99)} for n in TOLD.cells}).to_dict())}),
            "99 cases",
        ),
    ],
)
def test_what_cannot_be_taken_is_refused(tmp_path: Path, change: Callable[[ConfigRecord], None], words: str) -> None:
    told, refused, _ = asked(Site("site_a", tmp_path / "a"), Site("site_b", tmp_path / "b"), change=change)
    assert len(told) == 1 and len(refused) == 1
    assert words in next(iter(refused.values()))


def test_sums_nested_to_any_depth_are_refused(tmp_path: Path) -> None:
    """Near the interpreter's limit they could be read, and not be shown."""
    for depth in (90, 200, sys.getrecursionlimit() - 60, sys.getrecursionlimit() * 10):
        nested = json.dumps({name: {"liver": 1} for name in QUESTION.configurations}).replace("1", "[" * depth + "]" * depth)
        told, refused, _ = asked(
            Site("site_a", tmp_path / "a"), Site("site_b", tmp_path / "b"), change=partial(ConfigRecord.update, **{SUMS: nested})
        )
        assert len(told) == len(refused) == 1
