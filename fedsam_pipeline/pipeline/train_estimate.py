"""fedsam_train_federated --dry_run: minutes, bytes and memory of a run before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from fedsam_pipeline.flower.client_app import MAX_CASES_MID_RUN
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.flower.work_clock import longest_first
from fedsam_pipeline.pipeline.train_probe import Probe, case_voxels, probe, seen_slabs
from fedsam_pipeline.pipeline.train_request import RunSetup


@dataclass(frozen=True)
class Estimate:
    """What runs take, added up over the runs that follow each other.

    Attributes:
        runs: how many.
        rounds: of each.
        seconds: of the whole command.
        round_seconds: of a mean round of all runs, without scores.
        start_up_seconds: of the first run.
        bytes_up, bytes_down: of all messages.
        round_bytes_up, round_bytes_down: of a round after the first, of all runs.
        worker_bytes, server_bytes: peak resident memory of one process; ``None`` where the system does not tell.
        workers: processes that train at the same time.
        measured: what all this was reckoned from.
    """

    runs: int
    rounds: int
    seconds: float
    round_seconds: float
    start_up_seconds: float
    bytes_up: float
    bytes_down: float
    round_bytes_up: float
    round_bytes_down: float
    worker_bytes: int | None
    server_bytes: int | None
    workers: int
    measured: Probe

    @property
    def memory_bytes(self) -> int | None:
        """Of all workers and the server."""
        if self.worker_bytes is None or self.server_bytes is None:
            return None
        return self.workers * self.worker_bytes + self.server_bytes


def estimate(setups: Sequence[RunSetup], *, started: float) -> Estimate:
    """Probes the run with the most training cases and reckons all of them from it.

    Args:
        setups: of the runs of one command.
        started: when the command was, by ``time.perf_counter``.

    Raises:
        FedsamError: the recipe does not fit, or a site cannot work.
    """
    measured = probe(max(setups, key=lambda setup: sum(len(site.train_cases) for site in setup.sites)), started=started)
    every = [reckon(setup, measured) for setup in setups]
    first = every[0]
    return Estimate(
        runs=len(every),
        rounds=first.rounds,
        seconds=measured.import_seconds + sum(one.seconds for one in every),
        round_seconds=sum(one.round_seconds for one in every),
        start_up_seconds=measured.import_seconds + measured.start_up_seconds,
        bytes_up=sum(one.bytes_up for one in every),
        bytes_down=sum(one.bytes_down for one in every),
        round_bytes_up=sum(one.round_bytes_up for one in every),
        round_bytes_down=sum(one.round_bytes_down for one in every),
        worker_bytes=first.worker_bytes,
        server_bytes=first.server_bytes,
        workers=max(one.workers for one in every),
        measured=measured,
    )


def reckon(setup: RunSetup, measured: Probe) -> Estimate:
    """One run, from its simulation's start to its end.

    A round takes what its sites' messages take on the workers, the longest first, and the server's part, which grows with the sites; a
    round with scores the scoring of at most 8 cases a site as well; the end the scoring of all, by each site's own model too where it has
    one. Slabs of a pool are computed in the rounds that see them first. Questions of postprocessing are left out: they take no model.
    """
    schedule, sites = setup.schedule, setup.sites
    rounds, number, steps = schedule.rounds, len(sites), schedule.local_steps
    exchange = measured.exchange_seconds * max(1.0, number / measured.sites)

    def round_seconds(round_number: int, scoring: Sequence[float]) -> float:
        new = [seen_slabs(site, round_number * steps) - seen_slabs(site, (round_number - 1) * steps) for site in sites]
        trained = [steps * measured.step_seconds + measured.slab_seconds * slabs + measured.site_seconds for slabs in new]
        return longest_first([sum(both) for both in zip(trained, scoring, strict=True)], setup.workers) + exchange

    nothing, scoring = [0.0] * number, [measured.voxel_seconds * _voxels(site, MAX_CASES_MID_RUN) for site in sites]
    plain = [round_seconds(each, nothing) for each in range(1, rounds + 1)]
    scored = [each for each in range(2, rounds + 1) if setup.val_every > 0 and (each - 1) % setup.val_every == 0]
    training = sum(plain) + sum(round_seconds(each, scoring) - plain[each - 1] for each in scored)
    if setup.held_out is None:
        at_the_end = [measured.models * measured.voxel_seconds * _voxels(site) + measured.site_seconds for site in sites]
        final = longest_first(at_the_end, setup.workers) + exchange
        final_up, final_down = number * measured.final_bytes_up, number * measured.final_bytes_down
    else:  # scored where the server is: nothing travels
        final, final_up, final_down = measured.voxel_seconds * _voxels(setup.held_out), 0.0, 0.0
    up, down = number * measured.bytes_up, number * measured.bytes_down
    return Estimate(
        runs=1,
        rounds=rounds,
        seconds=measured.start_up_seconds + measured.compile_seconds + training + final + measured.end_seconds,
        round_seconds=fmean(plain),
        start_up_seconds=measured.start_up_seconds,
        bytes_up=rounds * up + final_up,
        bytes_down=number * measured.first_bytes_down + (rounds - 1) * down + final_down,
        round_bytes_up=up,
        round_bytes_down=down,
        worker_bytes=measured.worker_bytes,
        server_bytes=measured.server_bytes,
        workers=setup.workers,
        measured=measured,
    )


def _voxels(site: SiteSetup, most_cases: int | None = None) -> float:
    voxels = case_voxels(site)
    share = 1.0 if most_cases is None or len(voxels) <= most_cases else most_cases / len(voxels)
    return share * sum(voxels)


def estimate_table(found: Estimate) -> str:
    """What a dry run prints."""
    runs = "" if found.runs == 1 else f"{found.runs} runs of "
    rows = [
        ("", "a round", "in all", ""),
        ("time", _time(found.round_seconds), _time(found.seconds), f"start-up {_time(found.start_up_seconds)}"),
        ("from the sites", _size(found.round_bytes_up), _size(found.bytes_up), ""),
        ("to the sites", _size(found.round_bytes_down), _size(found.bytes_down), ""),
    ]
    if found.memory_bytes is not None:
        parts = f"{found.workers} x {_size(found.worker_bytes or 0)} for the workers, {_size(found.server_bytes or 0)} for the server"
        rows.append(("memory", "", _size(found.memory_bytes), parts))
    table = [f"{name:<16}{a_round:>12}{in_all:>12}   {more}".rstrip() for name, a_round, in_all, more in rows]
    return "\n".join([f"{runs}{found.rounds} rounds, estimated from a few steps; nothing was written", *table])


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _size(num_bytes: float) -> str:
    unit, name = next((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")) if num_bytes >= unit or unit == 1)
    return f"{num_bytes / unit:.2f} {name}"
