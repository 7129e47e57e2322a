"""Answers with anything in them: what the server reads of them is refused with a reason, or can be written down; it never crashes."""

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsam_pipeline.evaluation.dice_sums import DiceSums
from fedsam_pipeline.evaluation.summary import SiteDice, combine_sites
from fedsam_pipeline.flower.messages import CONFIG, METRICS, NUM_EXAMPLES, SUMS, TRAIN_ROUND, VALIDATION, VALIDATION_SHARED
from fedsam_pipeline.flower.replies import SiteFailed, read_reply
from fedsam_pipeline.flower.told_sums import told_sums
from fedsam_pipeline.postprocessing.deltas import DeltaSums
from tests.mutations import changed_once, mutated_json

NAMES = ("organ", "lesion")
SENT = ConfigRecord({"run_id": "run", "round": 2, "attempt": 1})
SCORE = SiteDice(np.array([0.5, np.nan]), 0.5, 3, np.array([0, 3]), np.array([0, 0])).to_dict(NAMES)
VALID = {"site_a": SCORE, "site_b": SCORE}
JUNK: tuple[Any, ...] = ("", "x" * 5000, "\n", 0, -1, 2**62, float("nan"), float("inf"), True, b"", b"\xff", [], [1, 2], ["a"])
DELTAS = {"cases": {"organ": 3, "lesion": 2}, "deltas": [{"organ": 0.5, "lesion": -1.0}, {"organ": 0.0, "lesion": 1e-9}]}
SUMMED = {name: {"organ": [1.5, 3], "lesion": [0.0, 2]} for name in ("x", "y")}
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def _stamped() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # Flower stamps messages with them


def answer(**config: Any) -> Message:
    values: dict[str, Any] = {"run_id": "run", "round": 2, "attempt": 1, "site": "site_a", VALIDATION: json.dumps(VALID)} | config
    record = ConfigRecord({key: value for key, value in values.items() if value is not None})
    return Message(RecordDict({CONFIG: record, METRICS: MetricRecord({NUM_EXAMPLES: 3})}), dst_node_id=0, message_type=TRAIN_ROUND)


def read_or_refused(message: Message) -> None:
    try:
        reply = read_reply(message, SENT, NAMES)
    except SiteFailed as error:
        assert len(str(error)) < 1000
        return
    assert reply.validation.keys() or reply.validation == {}
    for scores in (reply.validation, reply.validation_shared):
        json.dumps({site: dice.to_dict(NAMES) for site, dice in scores.items()}, ensure_ascii=False, allow_nan=False).encode()
        if scores:
            json.dumps(combine_sites(scores).to_dict(NAMES), allow_nan=False)


def test_the_honest_answer_is_read() -> None:
    assert read_reply(answer(), SENT, NAMES).validation.keys() == VALID.keys()


@pytest.mark.parametrize("key", ["run_id", "round", "attempt", "site", VALIDATION, VALIDATION_SHARED, "failure", "failure_id"])
def test_any_value_of_any_key(key: str) -> None:
    for junk in (None, *JUNK):
        read_or_refused(answer(**{key: junk}))
        read_or_refused(answer(**{"failure": "internal", key: junk}))


@pytest.mark.parametrize("key", [VALIDATION, VALIDATION_SHARED])
def test_junk_in_every_place_of_the_scores(key: str) -> None:
    for where, changed in changed_once(VALID):
        try:
            read_or_refused(answer(**{key: json.dumps(changed)}))
        except Exception as error:
            raise AssertionError(where) from error


@quick
@given(data=st.data())
def test_several_changes_of_the_scores(data: st.DataObject) -> None:
    read_or_refused(answer(**{VALIDATION: json.dumps(data.draw(mutated_json(VALID)))}))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_cases": -1},
        {"num_cases": 10**12},
        {"num_cases": 1},
        {"absent": {"organ": -1, "lesion": 0}},
        {"excluded": {"organ": 9, "lesion": 0}},
        {"dice": 1.5},
        {"classes": {"organ": float("inf"), "lesion": 0.5}},
    ],
)
def test_scores_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(SiteFailed, match="the scores of site_a cannot be read"):
        read_reply(answer(**{VALIDATION: json.dumps({"site_a": SCORE | changes})}), SENT, NAMES)


def test_more_scores_than_there_can_be() -> None:
    with pytest.raises(SiteFailed, match="no scores, or too many"):
        read_reply(answer(**{VALIDATION: json.dumps({f"site_{number}": SCORE for number in range(9000)})}), SENT, NAMES)


def told(value: Any) -> Any:
    return told_sums(answer(**{SUMS: json.dumps(value)}), "site_a", SENT, ("run_id",), "run")


def deltas_or_refused(value: Any) -> None:
    try:
        sums = DeltaSums.from_answer(told(value), names=NAMES, candidates=2, most_cases=3)
    except ValueError as error:  # AnswerRefused is one
        assert len(str(error)) < 400
    else:
        json.dumps(sums.to_dict(), allow_nan=False)


def dice_or_refused(value: Any) -> None:
    try:
        sums = DiceSums.from_answer(told(value), configurations=("x", "y"), names=NAMES, most_cases=3)
    except ValueError as error:
        assert len(str(error)) < 400
    else:
        json.dumps(sums.to_dict(), allow_nan=False)


def test_junk_in_every_place_of_the_sums() -> None:
    for _, changed in changed_once(DELTAS):
        deltas_or_refused(changed)
    for _, changed in changed_once(SUMMED):
        dice_or_refused(changed)


@quick
@given(data=st.data())
def test_several_changes_of_the_sums(data: st.DataObject) -> None:
    deltas_or_refused(data.draw(mutated_json(DELTAS)))
    dice_or_refused(data.draw(mutated_json(SUMMED)))
