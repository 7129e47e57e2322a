"""Sites that are away, late, or fail: the round goes on with the others, says who was missing, and takes them back."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.coding import decode
from fedsam_pipeline.flower import client_app, exchange
from fedsam_pipeline.flower.messages import CONFIG, PAYLOAD, from_record
from fedsam_pipeline.flower.replies import SiteFailed
from fedsam_pipeline.flower.site_worker import SiteSetup, SiteWorker
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from tests.flower.federations import SITES, Federation, assert_equal, start
from tests.flower.grids import DirectGrid, stamped_id

NAMES = tuple(SITES)
Fault = Literal["away", "silent", "killed", "lost"]
"""not connected; connected, and no answer; its machine dies before it trains; it trains, and its answer does not come"""


class FaultyGrid(DirectGrid):
    """Does to each message what ``faults`` says of its site and round."""

    def __init__(self, setups: Iterable[Any], faults: dict[tuple[str, int], Fault]) -> None:
        super().__init__(setups)
        self.faults, self.round = faults, 1

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if self.faults.get((NAMES[node - 1], self.round)) != "away"]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        asked = [message for message in messages if self._fault(message) in (None, "lost")]
        ids = [stamped_id(message) for message in messages]
        super().push_messages(asked)
        self._replies = [reply for reply in self._replies if reply.metadata.reply_to_message_id not in self._gone(messages)]
        for message in messages:
            if self._fault(message) == "killed":
                error = Message(Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat"), reply_to=message)
                error.metadata.__dict__["_src_node_id"] = 1  # as the SuperLink's
                self._replies.append(error)
        return ids

    def _fault(self, message: Message) -> Fault | None:
        number = int(message.content.config_records[CONFIG]["round"])  # type: ignore[arg-type]
        return self.faults.get((NAMES[message.metadata.dst_node_id - 1], number))

    def _gone(self, messages: Iterable[Message]) -> set[str]:
        return {stamped_id(message) for message in messages if self._fault(message) is not None}


def faulty(folder: Path, faults: dict[tuple[str, int], Fault], *, min_sites: int = 2, recipe: Recipe | None = None) -> Federation:
    federation = Federation(folder, recipe=recipe, min_sites=min_sites)
    grid = FaultyGrid(federation.setups, faults)
    federation.grid = federation.loop._grid = grid

    def admit(_strangers: Collection[str]) -> None:
        grid.round = len(federation.records) + 1

    federation.loop._admit = admit
    return federation


def missing(federation: Federation) -> list[dict[str, str]]:
    return [record.progress["missing"] for record in federation.records]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("away", "not there"),
        ("silent", "no answer within 0.5 s"),
        ("lost", "no answer within 0.5 s"),
        ("killed", "it is not connected any more (Flower error 5)"),
    ],
)
def test_a_round_goes_on_without_a_site_and_takes_it_back(
    tmp_path: Path, fault: Fault, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    federation = faulty(tmp_path, {("site_b", 2): fault})
    tensors = federation.run()
    assert missing(federation) == [{}, {"site_b": reason}, {}]
    assert reason in caplog.text
    assert [sorted(record.progress["sites"]) for record in federation.records] == [[*NAMES], ["site_a", "site_c"], [*NAMES]]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    # the one that came back went on from its own optimizer moments, and got the state in full where it lacked the last one
    states = CheckpointSeries(tmp_path / "sites" / "site_b", "state_r")
    assert states.rounds() == ([1, 2, 3] if fault == "lost" else [1, 3])
    log = (tmp_path / "sites" / "site_b" / "logs" / "site.log").read_text()
    assert ("goes on from its state of round 1" in log) == (fault != "lost")
    down = {site: row["down"]["bytes_message"] for site, row in federation.records[2].communication["sites"].items()}
    assert (down["site_b"] > down["site_a"]) == (fault != "lost"), "asked twice: the second time with the full state"


def test_what_a_round_gives_is_the_mean_of_those_that_answered(tmp_path: Path) -> None:
    """The stores of two federations differ by their place, so both are the same sites, of which the second lost one's answers."""
    lost = faulty(tmp_path, {("site_b", 1): "lost"})
    after, _ = lost.loop._round(start(lost.adapted), 1)
    updates = {}
    for message in lost.grid.received:
        site = str(message.content.config_records[CONFIG]["site"])
        updates[site] = decode(from_record(message.content.array_records[PAYLOAD]), start(lost.adapted), lost.adapted.manifest)
    assert sorted(updates) == [*NAMES], "all have trained"
    for name, tensor in after.items():
        mean = (SITES["site_a"] * updates["site_a"][name] + SITES["site_c"] * updates["site_c"][name]) / (SITES["site_a"] + SITES["site_c"])
        torch.testing.assert_close(tensor, mean)


def test_a_site_that_was_away_keeps_the_tensors_that_never_travel(tmp_path: Path) -> None:
    federation = faulty(tmp_path, {("site_b", 2): "killed", ("site_b", 3): "killed"}, recipe=load_recipe("fedsa_lora"))
    tensors = federation.run()
    scores = federation.loop.evaluate(tensors)
    assert sorted(scores.shared) == ["site_a", "site_c"] and sorted(scores.missing) == ["site_b"]
    worker = SiteWorker(federation.setups[1])
    own, last = worker._own(3), CheckpointSeries(tmp_path / "sites" / "site_b", "state_r").load(1)
    assert own and all(torch.equal(tensor, last[f"local/{name}"]) for name, tensor in own.items())


def test_too_few_sites_end_the_run_and_it_goes_on_from_there(tmp_path: Path) -> None:
    federation = faulty(tmp_path, {("site_b", 2): "silent", ("site_c", 2): "silent"})
    with pytest.raises(SiteFailed, match=r"1 of 2 needed sites .* site_b: no answer within 0\.5 s; site_c: no answer within 0\.5 s"):
        federation.run()
    federation = faulty(tmp_path / "killed", {("site_b", 2): "killed", ("site_c", 2): "killed"})
    said = r"1 of 2 needed sites are left; site_b: it is not connected any more \(Flower error 5\); site_c: it is not"
    with pytest.raises(SiteFailed, match=said):
        federation.run()
    assert isinstance(federation.grid, FaultyGrid)
    federation.grid.faults.clear()
    federation.run(1)
    assert [record.progress["round"] for record in federation.records] == [1, 2, 3]


def test_sites_that_do_not_come_are_not_waited_for_for_ever(tmp_path: Path) -> None:
    federation = faulty(tmp_path, {("site_b", 1): "away", ("site_c", 1): "away"})
    with pytest.raises(SiteFailed, match=r"1 site\(s\) connected within 0\.5 s, 2 are needed"):
        federation.run()


def test_a_site_that_reports_a_failure_is_left_out_of_the_round(tmp_path: Path) -> None:
    federation = faulty(tmp_path, {})
    for name in ("site_b_0", "site_b_1"):
        (tmp_path / "store" / "site_b" / f"{name}.b2nd").rename(tmp_path / name)

    def mend(_strangers: Collection[str]) -> None:
        for name in ("site_b_0", "site_b_1") if len(federation.records) == 1 else ():
            (tmp_path / name).rename(tmp_path / "store" / "site_b" / f"{name}.b2nd")

    federation.loop._admit = mend
    federation.run()
    found = missing(federation)
    assert found[0]["site_b"].startswith("site_b reports bad_input, id ") and found[1:] == [{}, {}]


def test_a_node_that_speaks_for_another_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = faulty(tmp_path, {})
    pull = federation.grid.pull_messages

    def lying(ids: Iterable[str]) -> Iterable[Message]:
        replies = list(pull(ids))
        for reply in replies:
            if reply.metadata.src_node_id == 2:
                reply.content.config_records[CONFIG]["site"] = "site_a"
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", lying)
    federation.run()
    assert all(list(each) == ["site_b"] and "two nodes answer for the same site, site_a" in each["site_b"] for each in missing(federation))


def test_a_site_whose_last_state_is_damaged_goes_on_from_the_one_before(tmp_path: Path) -> None:
    federation = faulty(tmp_path, {})

    def damage(_strangers: Collection[str]) -> None:
        if len(federation.records) == 2:
            (tmp_path / "sites" / "site_b" / "state_r0002" / "tensors.safetensors").write_bytes(b"torn")

    federation.loop._admit = damage
    federation.run()
    assert missing(federation) == [{}, {}, {}]
    log = (tmp_path / "sites" / "site_b" / "logs" / "site.log").read_text()
    assert "site_b asks for the full state" in log and "goes on from its state of round 1" in log


@pytest.mark.parametrize("wire", ["fp32", "int8"])
def test_a_run_whose_last_checkpoint_is_damaged_ends_the_same(tmp_path: Path, wire: Any) -> None:
    """The server falls back by a round that every site has trained already, the one in which it was cut too."""
    expected = Federation(tmp_path / "whole", wire=wire).run()
    cut = Federation(tmp_path / "cut", wire=wire)
    cut.run_until(3)  # trained, and not kept
    (tmp_path / "cut" / "checkpoints" / "round_0002" / "tensors.safetensors").write_bytes(b"torn")
    known = cut.checkpoints.latest()
    assert known is not None and known[0] == 1
    assert_equal(Federation(tmp_path / "cut", wire=wire).run(1), expected)


def test_a_site_whose_disk_is_full_is_left_out_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = faulty(tmp_path, {})
    save = CheckpointSeries._write

    def full(series: CheckpointSeries, round_number: int, tensors: dict[str, torch.Tensor]) -> None:
        if series.folder.name == "site_b" and round_number == 2:
            raise OSError(28, "No space left on device")
        save(series, round_number, tensors)

    monkeypatch.setattr(CheckpointSeries, "_write", full)
    federation.run()
    found = missing(federation)
    assert found[1]["site_b"].startswith("site_b reports bad_input") and found[2] == {}
    assert "No space left" in (tmp_path / "sites" / "site_b" / "logs" / "site.log").read_text()
    assert "No space left" not in str(found), "what a site's machine says stays there"


def test_a_servers_full_disk_ends_the_run_with_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path)
    save = CheckpointSeries._write

    def full(series: CheckpointSeries, round_number: int, tensors: dict[str, torch.Tensor]) -> None:
        if series.folder.name == "checkpoints" and round_number == 2:
            raise OSError(28, "No space left on device")
        save(series, round_number, tensors)

    monkeypatch.setattr(CheckpointSeries, "_write", full)
    with pytest.raises(FedsamError, match="a checkpoint cannot be written"):
        federation.run()
    monkeypatch.setattr(CheckpointSeries, "_write", save)
    assert_equal(Federation(tmp_path).run(1), Federation(tmp_path / "whole").run())


def test_nobody_answers_of_those_that_are_there(tmp_path: Path) -> None:
    federation = faulty(tmp_path, {("site_a", 1): "killed", ("site_b", 1): "away", ("site_c", 1): "away"}, min_sites=1)
    with pytest.raises(SiteFailed, match="0 of 1 needed sites gave a usable answer; site_a: it is not connected"):
        federation.run()


def test_a_site_that_becomes_ready_while_too_few_are_there_is_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MEANWHILE_SECONDS", 0.1)
    federation = faulty(tmp_path, {("site_b", 1): "away", ("site_c", 1): "away"})
    asked = []

    def admit(_strangers: Collection[str]) -> None:
        asked.append(1)
        if len(asked) == 3:
            assert isinstance(federation.grid, FaultyGrid)
            federation.grid.faults.pop(("site_c", 1), None)

    federation.loop._admit = admit
    federation.run()
    assert missing(federation)[0] == {"site_b": "not there"}


def test_a_site_that_knows_nothing_of_the_run_is_handed_to_who_lets_sites_in(tmp_path: Path) -> None:
    federation = faulty(tmp_path, {})
    seen: list[list[str]] = []
    find = federation.grid._app

    def admit(strangers: Collection[str]) -> None:
        seen.append(sorted(strangers))

    def lost(context: Context, content: RecordDict) -> SiteSetup:
        node = int(context.node_config["partition-id"])
        if node == 1 and int(content.config_records[CONFIG]["round"]) == 2:  # type: ignore[arg-type]
            raise client_app.AgreementBroken("this site accepted no such run")
        return federation.setups[node]

    federation.grid._app = client_app.make_client_app(lost)
    federation.loop._admit = admit
    federation.run()
    assert find is not federation.grid._app
    assert seen == [[], [], ["site_b"]]
    assert missing(federation)[1]["site_b"].startswith("unknown reports agreement_broken")


def test_names_are_told_in_simulation_too(tmp_path: Path) -> None:
    """Nobody has registered which node is which site; a failure in round 1 says so itself."""
    federation = faulty(tmp_path, {})
    federation.loop._heads = AuditHeads(tmp_path)
    (tmp_path / "store" / "site_b" / "site_b_0.b2nd").unlink()
    (tmp_path / "store" / "site_b" / "site_b_1.b2nd").unlink()
    federation.run()
    assert [list(each) for each in missing(federation)] == 3 * [["site_b"]]


@pytest.mark.parametrize("window", [1, 2, 3, None])
def test_a_message_lasts_as_long_as_its_answer_is_waited_for(tmp_path: Path, window: int | None) -> None:
    """Where not all are asked at once the clock of the last one begins later, so it must not run out by itself."""
    federation = Federation(tmp_path, min_sites=2)
    federation.loop._plan = replace(federation.loop._plan, window=window, timeout=30.0)
    federation.run()
    at_once = window is None or window >= 3
    assert {message.metadata.ttl == 30.0 for message in federation.grid.sent} == {at_once}


def test_a_site_that_was_away_or_joined_late_trains_a_round_again_after_the_server_was_killed(tmp_path: Path) -> None:
    """Site b trained round 1 alone before, site c none; both have trained round 3, which the server has not kept."""
    away: dict[tuple[str, int], Fault] = {("site_b", 2): "killed", ("site_c", 1): "killed", ("site_c", 2): "killed"}
    whole = faulty(tmp_path / "whole", away, min_sites=1)
    expected = whole.run()
    cut = faulty(tmp_path / "cut", away, min_sites=1)
    cut.run_until(3)
    again = faulty(tmp_path / "cut", {}, min_sites=1)
    found = again.run(2)
    assert missing(again) == [{}]
    assert sorted(again.records[0].progress["sites"]) == [*NAMES]
    assert found.keys() == expected.keys()
    for site, rounds in (("site_b", [1, 3]), ("site_c", [3])):
        assert CheckpointSeries(tmp_path / "cut" / "sites" / site, "state_r").rounds() == rounds


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_round_waits_for_a_site_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, comes_back: bool
) -> None:
    federation = faulty(tmp_path, {("site_b", 2): "killed", ("site_b", 3): "away"})
    monkeypatch.setattr(federation.loop, "_plan", replace(federation.loop._plan, wait_lost=0.3))
    grid = federation.grid
    assert isinstance(grid, FaultyGrid)
    real, looks = grid.get_node_ids, [0]

    def get_node_ids() -> Iterable[int]:
        looks[0] += grid.round == 3
        if comes_back and looks[0] == 4:
            del grid.faults["site_b", 3]
        return real()

    monkeypatch.setattr(grid, "get_node_ids", get_node_ids)
    with caplog.at_level("INFO", logger="fedsam_pipeline"):
        federation.run()
    assert "site_b took part and is not there; waiting, 0.3 s at most" in caplog.text
    assert [sorted(each) for each in missing(federation)] == [[], ["site_b"], [] if comes_back else ["site_b"]]
    assert ("it goes on without site_b: not there" in caplog.text) != comes_back


def test_a_site_that_never_came_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    federation = faulty(tmp_path, {("site_b", number): "away" for number in (1, 2, 3)})
    monkeypatch.setattr(federation.loop, "_plan", replace(federation.loop._plan, wait_lost=600.0))
    federation.run()
    assert "waiting" not in caplog.text and all(list(each) == ["site_b"] for each in missing(federation))
