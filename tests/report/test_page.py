"""The page: stands alone, is well formed whatever the names are, and every number in it is in the run's files."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.evaluation.case_metrics import MetricSettings, measure
from fedsam_pipeline.evaluation.metrics import counts
from fedsam_pipeline.evaluation.scores import score_metrics
from fedsam_pipeline.evaluation.summary import CaseScore, summarize
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.pipeline.report import own_scores
from fedsam_pipeline.report.case_scores import ScoreSet, evaluated
from fedsam_pipeline.report.markup import Section, duration, num_bytes, table, value
from fedsam_pipeline.report.run_files import RunFiles
from fedsam_pipeline.report.run_page import Surroundings, run_page
from fedsam_pipeline.report.score_sections import CasePicture, score_section
from fedsam_pipeline.report.tradeoff import RunCost
from tests.report.runs import EVIL, ROUNDS, SECRET, write_run

PNG = b"\x89PNG\r\n\x1a\n"
NO_CASES = "cases stay at their sites"


class Reader(HTMLParser):
    """Tags closed in order, anchors, attributes, and what a person reads."""

    void = frozenset({"meta", "img", "wbr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, content or "") for name, content in attrs]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def of(self, tag: str, name: str) -> list[str]:
        return [content for at, key, content in self.attributes if (at, key) == (tag, name)]

    @property
    def text(self) -> str:
        """Without the places where a long key may go on in the next line."""
        return "".join(self.words)


def page_of(folder: Path, **around: Any) -> str:
    files = RunFiles.load(folder)
    return run_page(files, Surroundings(own_scores(files), NO_CASES, **around), made_with="0.1.0")


def pictures(files: RunFiles) -> list[CasePicture]:
    return [CasePicture("worst", own_scores(files)[0].cases[0], PNG)]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    page = page_of(folder, pictures=pictures(RunFiles.load(folder)), others=[RunCost("other/run", 0.5, 4, 7_000_000)])
    reader = Reader(page)
    assert not reader.open
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    assert all(content.startswith("data:image/") for content in reader.of("img", "src"))
    anchors = {content for _, name, content in reader.attributes if name == "id"}
    assert {content.removeprefix("#") for content in reader.of("a", "href")} == anchors  # the contents lead to every section
    assert not [name for _, name, _ in reader.attributes if name.startswith("on") or name in ("srcset", "action", "formaction")]
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|url\(|@import|//", without_pictures)


def test_the_page_is_accessible(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    reader = Reader(page_of(folder, pictures=pictures(RunFiles.load(folder))))
    alternatives = reader.of("img", "alt")
    assert len(alternatives) == reader.tags.count("img") and all(len(words) > 40 for words in alternatives)
    assert any("site_a median" in words and "5 cases" in words for words in alternatives)
    assert reader.of("html", "lang") == ["en"] and reader.tags.count("h1") == reader.tags.count("main") == 1
    assert reader.tags.count("table") == reader.tags.count("caption") == reader.tags.count("thead")
    assert set(reader.of("th", "scope")) == {"col", "row"}
    assert reader.tags.index("h2") < reader.tags.index("h3")


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    page = page_of(folder, pictures=pictures(RunFiles.load(folder)), picture_notes=[EVIL], left_out=[EVIL])
    assert "<b>bold" not in page and "&lt;b&gt;bold&lt;/b&gt;&amp;&quot;&#x27;" in page
    text = Reader(page).text
    for words in (f"{SECRET}_site_a_0{EVIL}", f"median of 137 cases {EVIL}", f"room for 3 {EVIL}", f"torch{EVIL}", f"Left out: {EVIL}"):
        assert words in text, words


def test_it_says_what_was_found(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    text = Reader(page_of(folder, others=[RunCost("other/run", 0.5, 4, 7_000_000)])).text
    for words in (
        "worst site: site_b",
        "2. other/run",
        "flap_sam__plans__main/federated__fedavg__seed0 (this run)",
        "No update was refused",
        "1,284 in 1 tensors",
        "mine.toml",
        "without a value",
        "Absent in both masks, not counted (cases): lesion 2",
    ):
        assert words in text, words
    assert "/home" not in text and "secret_project" not in text


def _numbers_of(found: Any) -> Iterator[float]:
    if isinstance(found, dict):
        for key, item in found.items():
            yield from _numbers_of(key)
            yield from _numbers_of(item)
    elif isinstance(found, list | tuple):
        for item in found:
            yield from _numbers_of(item)
    elif isinstance(found, str):
        yield from map(float, re.findall(r"\d+(?:\.\d+)?", found))
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield float(found)


def _derived(folder: Path) -> Iterator[float]:
    """What the page computes: sums of bytes, ratios, numbers of parameters and tensors, Dice of single cases."""
    rounds = read_json(folder / "communication.json")["rounds"]
    sites = sorted(rounds[0]["sites"])
    total = 0
    for way in ("up", "down"):
        messages = {site: [entry["sites"][site][way]["bytes_message"] for entry in rounds] for site in sites}
        yield from (sum(of_site) for of_site in messages.values())
        yield sum(map(sum, messages.values()))
        yield sum(of_site[0] for of_site in messages.values())  # a round: all are alike here
        total += sum(map(sum, messages.values()))
        before, after = (
            sum(entry["sites"][site][way][key] for entry in rounds[:-1] for site in sites)
            for key in ("bytes_payload_before", "bytes_payload_after")
        )
        yield from (before, after, before / after, 0.125 * len(sites) * ROUNDS)
    yield from (total, 4 * 321, 4 * 321 + 77, 77, 1, 2)
    for path in folder.glob("sites/*/*.json"):
        for row in read_json(path)["cases"]:
            dice = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in row["tp_fp_fn"] if tp + fp + fn]
            yield from (*dice, float(np.mean(dice)))


def test_every_number_is_in_the_files_of_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    known = [*_derived(folder)]
    for path in (*folder.glob("*.json"), *folder.glob("*/*.json"), *folder.glob("sites/*/*.json")):
        known += _numbers_of(read_json(path))
    for line in (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines():
        known += _numbers_of(json.loads(line))
    reader = Reader(page_of(folder, pictures=pictures(RunFiles.load(folder))))
    said = [  # numbers of our own sentences
        "1.5 times the box (Tukey, 1977)",
        "1 MB is 10^6 bytes",
        "at most 8",
        "fedsam-pipeline 0.1.0",
        "float32",
        " · ".join(RunFiles.load(folder).names),
        "Dataset001_Demo",
        "flap_sam__plans__main/federated__fedavg__seed0",
        "1. ",
    ]
    text = " ".join(reader.words)
    for words in said:
        text = text.replace(words, " ")
    text = re.sub(r"[0-9a-f]{64}|\S*\d[0-9a-f]*[a-f]\w*", " ", text)  # hashes and identifiers
    found = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", text)
    assert len(found) > 100
    strange = []
    for token in found:
        plain = token.replace(",", "").rstrip(".")
        digits = len(plain.partition(".")[2])
        if not any(f"{number / unit:.{digits}f}" == plain for number in known for unit in (1, 60, 1e3, 1e6, 1e9)):
            strange.append(token)
    assert not strange


def test_without_cases_the_page_names_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    files = RunFiles.load(folder)
    scores = [each.without_cases() for each in own_scores(files)]
    page = run_page(files, Surroundings(scores, NO_CASES, picture_notes=[NO_CASES]), made_with="0.1.0")
    assert SECRET not in page and "Box plot" not in page and page.count(NO_CASES) == 2
    assert "stays where they may be seen" not in page and "stays where they may be seen" in page_of(folder)


def test_the_page_grows_slowly(tmp_path: Path) -> None:
    """60 rounds are curves of 60 points; thousands of cases are boxes; a picture weighs what its PNG weighs."""
    small = len(page_of(write_run(tmp_path / "small")))
    large = len(page_of(write_run(tmp_path / "large", sites={f"site_{at}": 300 for at in range(8)})))
    assert small < 400_000 and large < 1_000_000


def test_what_is_not_there_yet_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    for name in ("progress.jsonl", "communication.json", "validation/summary.json"):
        (folder / name).unlink()
    write_json(folder / "run.json", read_json(folder / "run.json") | {"status": "running", "encoder": "random", "weights_sha256": "random"})
    text = Reader(page_of(folder)).text
    for words in (
        "This training is not done (status: running)",
        "Nothing has been scored.",
        "No round has been finished yet.",
        "Nothing has been scored yet.",
        "There is no communication.json yet",
        "control experiment",
        "drawn at random: good for trying out",
    ):
        assert words in text, words


def test_sites_with_tensors_of_their_own_have_two_tables(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    summary = read_json(folder / "validation" / "summary.json")
    personal = {key: summary[key] for key in ("sites", "dice", "all_sites")}
    write_json(folder / "validation" / "summary.json", summary | {"personal": personal})
    assert "Dice on validation cases, each site's own model" in Reader(page_of(folder)).text


def test_one_site_alone_sends_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    write_json(folder / "run.json", read_json(folder / "run.json") | {"protocol": "centralized"})
    text = Reader(page_of(folder)).text
    assert text.count("Nothing travels under this protocol") == 3 and "sent in all" not in text


def test_an_encrypted_run_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert "summed in the clear" in Reader(page_of(folder)).text
    write_json(folder / "run.json", read_json(folder / "run.json") | {"encrypt": True})
    text = Reader(page_of(folder)).text
    assert "the server learned the sum of each round alone" in text and "summed in the clear" not in text


def test_questions_about_postprocessing_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert "questions about postprocessing" not in Reader(page_of(folder)).text
    communication = read_json(folder / "communication.json")
    asked = communication["rounds"][-1] | {"message": "query.postprocessing"}
    write_json(folder / "communication.json", communication | {"rounds": [*communication["rounds"], asked, asked]})
    assert "questions about postprocessing2: sums over a site's validation cases" in Reader(page_of(folder)).text


def test_refused_updates_are_listed(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    lines = (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"refused": {"site_b": "a tensor is not finite"}})
    (folder / "progress.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = Reader(page_of(folder)).text
    assert "a tensor is not finite" in text and "No update was refused" not in text and "Missing sites" not in text


def test_missing_sites_are_listed(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    lines = (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"missing": {"site_b": "no answer within 60 s"}})
    (folder / "progress.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = Reader(page_of(folder)).text
    assert "Missing sites: these rounds went on without them" in text and "no answer within 60 s" in text


def _evaluation(classes: int) -> dict[str, Any]:
    """``summary.json`` of four cases at two sites, as ``fedsam_evaluate`` writes it."""
    settings, names, scores = MetricSettings(), [f"class_{at}" for at in range(classes)], []
    for at in range(4):
        truth = np.arange(8 * 8 * 8).reshape(8, 8, 8) // 16 % (classes + 1)
        groups = [(value,) for value in range(1, classes + 1)]
        found = np.roll(truth, at, 2)
        further = measure(truth, found, groups, (1.0, 1.0, 1.0), settings)
        distances = further.pop("HD95")
        site = f"site_{'ab'[at % 2]}"
        table = counts(truth, found, classes + 1)
        scores.append(CaseScore(f"case_{at}", site, "gt", "pred", table, truth.size, distances, further=further, spacing=(1.0, 1.0, 1.0)))
    return summarize(scores, names) | score_metrics(scores, names, settings)


def test_an_evaluation_shows_its_metrics() -> None:
    summary = _evaluation(2)
    text = Reader(score_section(evaluated("Dice on test images", summary), why_no_cases="").body).text
    assert "All metrics, mean of the sites" in text and "bootstrap" in text
    for metric in summary["scores"]:
        assert f"{summary['scores'][metric]['all_sites']['mean']['low']:.4g}" in text, metric


def test_many_classes_stand_below_each_other() -> None:
    section = score_section(evaluated("Dice on test images", _evaluation(12)), why_no_cases="")
    headers = re.findall(r"<th scope='col'[^>]*>([^<]*)", section.body)
    assert headers[:7] == ["site", "cases", "mean", "class", "site_a", "site_b", "mean of sites"]


def test_nothing_scored_is_a_sentence() -> None:
    section = score_section(ScoreSet("Dice", {"rule": "", "sites": {}, "dice": None}), why_no_cases="")
    assert Reader(section.body).text == "Nothing has been scored." and section == Section("Dice", section.body)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.json", None, "this folder holds no training"),
        ("run.json", "[]", "a record of the training lacks something"),
        ("run.json", "{", "cannot be read as JSON"),
        ("plans.json", None, "a file is missing"),
        ("recipe.json", None, "a file is missing"),
        ("manifest.json", "{}", "manifest.json"),
        ("communication.json", '{"rounds": [{}]}', "another form than expected"),
        ("communication.json", "{}", "no rounds"),
        ("progress.jsonl", '{"event": "round"}\nnot json\n', "line 2"),
        ("progress.jsonl", '{"event": "round"}\n', "another form than expected"),
        ("validation/summary.json", '{"rule": "", "dice": 1, "sites": {"a": 3}}', "another form than expected"),
        ("sites/site_a/validation_shared.json", '{"cases": 3}', "another form than expected"),
        ("execution/site_a.json", "{}", "site_a.json"),
    ],
)
def test_files_that_are_missing_or_broken_are_named(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    folder = write_run(tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(FedsamError) as caught:
        page_of(folder)
    assert words in str(caught.value) and str(caught.value.path).startswith(str(folder))


def test_numbers_as_people_read_them() -> None:
    assert [num_bytes(number) for number in (None, 999, 12_345, 9_997_876, 2.5e9)] == ["-", "999 B", "12.35 kB", "10.00 MB", "2.50 GB"]
    assert [duration(seconds) for seconds in (None, 3.14, 914.6, 9000)] == ["-", "3.1 s", "15.2 min", "2.5 h"]
    found = [None, True, 0.1 + 0.2, {"b": 2, "a": 1}, {}, [], [1, 2], [{"x": 1}, {"x": 2}], "text"]
    assert [value(each) for each in found] == ["-", "yes", "0.3", "a 1, b 2", "none", "none", "1, 2", "x 1; x 2", "text"]
    with pytest.raises(ValueError, match="zip"):
        table("caption", ["a", "b"], [["1"]])
