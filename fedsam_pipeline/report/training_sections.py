"""Sections about the training: learning curves, what accuracy cost in bytes, what travelled, what protects the sites."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsam_pipeline.report.curves import curve_sites, dice_figure, final_record, loss_figure, round_records
from fedsam_pipeline.report.markup import Section, dice, duration, figure, note, num_bytes, side_by_side, table, text, value
from fedsam_pipeline.report.run_files import RunFiles
from fedsam_pipeline.report.style import svg_bytes
from fedsam_pipeline.report.tradeoff import RunCost, run_cost_figure
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.training_record import PrivacySpent

TRAINING, POSTPROCESSING = "train.round", "query.postprocessing"
"""of the messages in ``communication.json``; the third kind asks for the scores of the last model"""
ENCRYPTED = (
    "Updates left the sites encrypted and the server learned the sum of each round alone, as long as no site gave the sites' key away. No "
    "noise was added: this is not differential privacy."
)
ONE_SITE = "Nothing travels under this protocol: one site trains, within one machine."


def curve_section(records: Sequence[Mapping[str, Any]]) -> Section:
    """Loss and validation Dice over rounds, from ``progress.jsonl``."""
    rounds = round_records(records)
    if not rounds:  # a final record alone would be a single point
        return Section("Learning curves", text("No round has been finished yet."))
    figures = [figure(svg_bytes(loss_figure(records)), "image/svg+xml", "", _loss_words(records))]
    if not any(record.get("dice") is not None for record in rounds):
        return Section("Learning curves", side_by_side(figures) + note("No round was scored on the way, so there is no curve of Dice."))
    figures.append(figure(svg_bytes(dice_figure(records)), "image/svg+xml", "", _dice_words(records)))
    words = "Lines: at most 8 validation cases of each site, scored on the way. Diamonds: the final model on the whole fold."
    return Section("Learning curves", side_by_side(figures) + note(words))


def tradeoff_section(files: RunFiles, others: Sequence[RunCost], left_out: Sequence[str]) -> Section:
    """Dice against bytes: of this run as it went on, and of other finished runs.

    Args:
        files: of the run.
        others: runs with the same plan, on the same cases.
        left_out: runs that could not be read, and why.
    """
    title = "Dice against bytes"
    if not files.exchanges:
        return Section(title, text(ONE_SITE))
    this, path = run_cost(files), _path(files.records)
    if this is None and not path:
        return Section(title, text("Nothing has been scored yet."))
    points = [(1, this)] if this is not None else []
    rows = [
        [f"{number}. {run.name}" + (" (this run)" if number == 1 else ""), str(run.rounds), dice(run.dice), num_bytes(run.num_bytes)]
        for number, run in [*points, *enumerate(others, start=2)]
    ]
    words = "; ".join(f"{row[0]}: Dice {row[2]} for {row[3]}" for row in rows) or "only scores on the way"
    body = ""
    if path or others:  # else one point, which the table says better
        body += figure(svg_bytes(run_cost_figure(path, this, others)), "image/svg+xml", "", f"Dice against bytes. {words}.")
    body += table("Finished runs, numbered as in the figure", ["run", "rounds", "Dice", "sent in all"], rows) if rows else ""
    how = "Line: this run on the way, on at most 8 cases of each site. " if path else ""
    alone = "Other runs have the same plan and the same cases." if others else "No other finished run of this plan and these cases is here."
    body += note(f"{how}Finished runs: on the whole fold, with the messages after the last round. {alone} 1 MB is 10^6 bytes.")
    return Section(title, body + "".join(note(f"Left out: {each}") for each in left_out))


def run_cost(files: RunFiles) -> RunCost | None:
    """What a run reached and sent; ``None`` where it is not done, or nothing was scored or sent."""
    if files.summary is None or files.summary["dice"] is None or not files.traffic:
        return None
    configuration, run, _ = files.names
    sent = sum(_sum(files.traffic, way, "bytes_message") for way in ("up", "down"))
    return RunCost(f"{configuration}/{run}", float(files.summary["dice"]), int(files.run["rounds"]), sent)


def communication_section(files: RunFiles) -> Section:
    """What travelled, site by site, from ``communication.json``; refused updates from ``progress.jsonl``."""
    title = "Communication"
    if not files.exchanges:
        return Section(title, text(ONE_SITE))
    if not files.traffic:
        return Section(title, text("There is no communication.json yet: no round has been finished."))
    rounds = [entry for entry in files.traffic if entry["message"] == TRAINING]
    sites = sorted({site for entry in files.traffic for site in entry["sites"]})
    rows = [[site, *_site_cells(files.traffic, rounds, [site])] for site in sites]
    rows.append(["all sites", *_site_cells(files.traffic, rounds, sites)])
    header = ["site", "rounds", "up, whole run", "down, whole run", "up, a round", "down, a round"]
    parts = [table("Messages of every site, as Flower serialises them", header, rows, total=True)]
    coded = []
    for way, words in (("up", "up (sites to server)"), ("down", "down (server to sites)")):
        before, after = (_sum(rounds, way, key) for key in ("bytes_payload_before", "bytes_payload_after"))
        seconds = sum(float(site[way]["codec_seconds"]) for entry in rounds for site in entry["sites"].values())
        coded.append([words, num_bytes(before), num_bytes(after), f"{before / after:.1f}" if after else "-", duration(seconds)])
    header = ["direction", "as float32", "as sent", "times smaller", "coding, all sites"]
    parts.append(table(f"Payloads of all rounds, wire {files.recipe.aggregation.wire}", header, coded))
    refused = [
        [str(record["round"]), site, str(why)]
        for record in round_records(files.records)
        for site, why in sorted((record.get("refused") or {}).items())
    ]
    if refused:
        parts.append(table("Refused updates: these rounds went on without them", ["round", "site", "why"], refused, kind="words"))
    else:
        parts.append(note("No update was refused."))
    missing = [
        [str(record["round"]), site, str(why)]
        for record in round_records(files.records)
        for site, why in sorted((record.get("missing") or {}).items())
    ]
    if missing:
        parts.append(table("Missing sites: these rounds went on without them", ["round", "site", "why"], missing, kind="words"))
    return Section(title, "".join(parts))


def privacy_section(files: RunFiles, fingerprint: Fingerprint | None, why_unknown: str) -> Section:
    """What left the sites and what is known of its protection.

    Args:
        files: of the run.
        fingerprint: that the plan was made of; ``None`` where it is not on this machine.
        why_unknown: said in its place.
    """
    manifest = files.manifest
    rows = []
    if files.exchanges:
        rows += [
            ["trained parameters that travel", f"{manifest.federated_parameters:,} in {len(manifest.federated):,} tensors"],
            ["trained parameters that stay", f"{manifest.trained_parameters - manifest.federated_parameters:,}"],
            ["wire", files.recipe.aggregation.wire],
        ]
        if asked := sum(entry["message"] == POSTPROCESSING for entry in files.traffic):
            rows.append(["questions about postprocessing", f"{asked}: sums over a site's validation cases, of sites with enough of them"])
    if fingerprint is not None:
        floor = fingerprint.privacy_floor
        means = "nothing was coarsened" if floor == 1 else "every number of a fingerprint stands for at least so many patients of a site"
        rows += [
            ["privacy floor", f"{floor}: {means}"],
            ["fingerprints merged", f"{fingerprint.num_cases} cases of {fingerprint.num_sites} site(s)"],
        ]
    parts = [table("What left the sites", ["what", "value"], rows, kind="words")] if rows else [text(ONE_SITE)]
    if fingerprint is None:
        parts.append(note(why_unknown))
    if files.exchanges:
        how = ENCRYPTED if files.run.get("encrypt") else _in_plain(files.run)
        parts.append(text(f"{how} Images, masks, preprocessed arrays and names of cases are in no message."))
    return Section("Privacy", "".join(parts))


def _in_plain(run: Mapping[str, Any]) -> str:
    spent = run.get("privacy_spent")
    if run.get("privacy") is None:
        noise = "no noise was added, so there is no differential privacy."
    elif not spent or not spent["releases"]:
        noise = "the model of each round gets noise (differential privacy of sites); none has been made yet."
    else:
        noise = (
            f"the model of each round had noise. Differential privacy of sites: {PrivacySpent.from_dict(spent)}, of a budget of "
            f"{spent['budget']:g}. It covers the trained weights, not losses and scores, nor what the server sees."
        )
    return f"The server saw each site's update, and updates were summed in the clear; {noise}"


def environment_section(files: RunFiles) -> Section:
    """Versions, hardware, hashes and arguments of ``run.json``; how each site carried out a step."""
    run = files.run
    hardware, versions = run["hardware"], run["versions"]
    parts = [
        table("Software", ["package", "version"], [[name, value(found)] for name, found in versions.items()], kind="words"),
        table(
            "Hardware and time",
            ["what", "value"],
            [
                *([name, value(found)] for name, found in hardware.items()),
                ["sites at the same time", value(run.get("workers"))],
                ["training time", duration(run.get("seconds"))],
                ["peak memory of a worker", num_bytes(run.get("peak_memory_bytes"))],
            ],
            kind="words",
        ),
    ]
    if files.execution:
        rows = [
            [site, each.device, value(each.micro_batch), value(each.gradient_checkpointing), each.why]
            for site, each in files.execution.items()
        ]
        header = ["site", "device", "images at once", "checkpointing", "because"]
        parts.append(table("How each site carried out a step", header, rows, kind="words"))
    return Section("Environment", "".join(parts))


def _site_cells(traffic: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> list[str]:
    taken = [entry for entry in rounds if any(site in entry["sites"] for site in sites)]
    cells = [str(len(taken))]
    cells += [num_bytes(_sum(traffic, way, "bytes_message", sites)) for way in ("up", "down")]
    return cells + [num_bytes(_sum(taken, way, "bytes_message", sites) / len(taken)) if taken else "-" for way in ("up", "down")]


def _sum(entries: Sequence[Mapping[str, Any]], way: str, key: str, sites: Sequence[str] | None = None) -> int:
    return sum(int(row[way][key]) for entry in entries for site, row in entry["sites"].items() if sites is None or site in sites)


def _path(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Bytes of all rounds up to the model that was scored, and its Dice; the model of round 0 has cost nothing and is left out."""
    spent, path = 0, []
    after = {0: 0}
    for record in round_records(records):
        spent += int(record.get("bytes_up") or 0) + int(record.get("bytes_down") or 0)
        after[int(record["round"])] = spent
        scored = record.get("validated_round")
        if record.get("dice") is not None and scored is not None and after.get(int(scored)):
            path.append((float(after[int(scored)]), float(record["dice"])))
    return path


def _loss_words(records: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for site in curve_sites(records):
        found = [
            (record["round"], record["sites"][site]["loss"]) for record in round_records(records) if site in (record.get("sites") or {})
        ]
        if found:
            (first, begin), (last, end) = found[0], found[-1]
            parts.append(f"{site} from {begin:.3f} in round {first} to {end:.3f} in round {last}")
    return f"Training loss over rounds: {'; '.join(parts)}."


def _dice_words(records: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    scored = [record for record in round_records(records) if record.get("dice") is not None]
    if scored:
        parts.append(f"mean of the sites from {scored[0]['dice']:.3f} to {scored[-1]['dice']:.3f}, as scored on the way")
    final = final_record(records)
    if final is not None and final.get("dice") is not None:
        parts.append(f"{final['dice']:.3f} at the end, on the whole fold")
    return f"Validation Dice over rounds: {'; '.join(parts)}."
