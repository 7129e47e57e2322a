"""A dry run: what it measures, what it makes of it, what it leaves behind."""

import time
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from fedsam_pipeline.pipeline import train_probe
from fedsam_pipeline.pipeline.train_estimate import Estimate, estimate, estimate_table, reckon
from fedsam_pipeline.pipeline.train_probe import Probe, StepCosts, case_voxels, probe, seen_slabs, step_costs
from fedsam_pipeline.pipeline.train_request import RunSetup
from fedsam_pipeline.postprocessing.candidates import CandidateVolumes
from fedsam_pipeline.specs.recipe import Recipe, load_recipe
from fedsam_pipeline.training.local_trainer import RunSchedule
from tests.flower.federations import Federation, setups
from tests.pipeline.comparisons import DirectSimulation

PROBE = Probe(
    sites=3,
    slab_seconds=0.0,
    compile_seconds=0.0,
    import_seconds=3.0,
    start_up_seconds=7.0,
    end_seconds=2.0,
    step_seconds=0.5,
    voxel_seconds=1e-3,
    models=1,
    site_seconds=1.0,
    exchange_seconds=0.25,
    bytes_up=100.0,
    bytes_down=80.0,
    first_bytes_down=10.0,
    final_bytes_up=5.0,
    final_bytes_down=90.0,
    worker_bytes=1 << 30,
    server_bytes=1 << 29,
)


def a_recipe(name: str) -> Recipe:
    """A recipe of ours, or flap_sam with FedEx-LoRA, whose residuals travel down too, or on a lossy wire."""
    changes = {"fedex": {"lora_method": "fedex"}, "int4": {"wire": "int4"}}
    if name not in changes:
        return load_recipe(name)
    values = load_recipe("flap_sam").to_dict()
    return Recipe.from_dict(values | {"aggregation": values["aggregation"] | changes[name]})


def a_run(folder: Path, recipe: str = "flap_sam", **changes: object) -> RunSetup:
    """Three sites with one validation case each, four rounds of ten steps on two workers, scores every second round."""
    sites = tuple(setups(folder, recipe=a_recipe(recipe)))
    run = RunSetup(
        folder=folder / "results" / "fold_0",
        sites=sites,
        labels=sites[0].labels,
        schedule=RunSchedule(rounds=4, local_steps=10, peak_learning_rate=2e-3, seed=0),
        val_every=2,
        workers=2,
        protocol="federated",
        model=sites[0].model,
        dataset={},
        candidate_volumes=CandidateVolumes({}, {}),
        validated={},
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def test_a_run_is_reckoned_from_its_schedule(tmp_path: Path) -> None:
    found = reckon(a_run(tmp_path), PROBE)
    voxels = 6 * 24 * 26
    assert [case_voxels(site) for site in a_run(tmp_path).sites] == [[voxels]] * 3
    plain = 2 * (10 * 0.5 + 1.0) + 0.25  # three sites on two workers: two after each other
    scored, final = plain + 2 * voxels * 1e-3, 2 * (voxels * 1e-3 + 1.0) + 0.25
    assert found.round_seconds == pytest.approx(plain)
    assert found.seconds == pytest.approx(7.0 + 3 * plain + scored + final + 2.0)  # round 3 scores what round 2 gave
    assert found.bytes_up == 4 * 3 * 100 + 3 * 5
    assert found.bytes_down == 3 * (10 + 3 * 80) + 3 * 90
    assert found.memory_bytes == (2 << 30) + (1 << 29)


def test_slabs_of_a_pool_are_computed_once(tmp_path: Path) -> None:
    values = load_recipe("late_lora_cached").to_dict()
    sites = tuple(setups(tmp_path, recipe=Recipe.from_dict(values | {"cache": {"slabs_per_case": 10}})))
    run = a_run(tmp_path, sites=sites, val_every=0, workers=3)  # two slabs a step: pools of 30, 20 and 10 slabs, 20 draws a round
    assert [[seen_slabs(site, steps) for steps in (10, 20, 99)] for site in sites] == [[20, 30, 30], [20, 20, 20], [10, 10, 10]]
    known, new = reckon(run, PROBE), reckon(run, replace(PROBE, slab_seconds=2.0))
    assert new.seconds - known.seconds == pytest.approx(2.0 * 30)  # of the largest site, in two rounds of four
    assert new.round_seconds - known.round_seconds == pytest.approx(2.0 * 30 / 4)
    plain = a_run(tmp_path)
    assert reckon(plain, replace(PROBE, slab_seconds=2.0)).seconds == reckon(plain, PROBE).seconds


def test_what_a_round_takes_beyond_its_sites_grows_with_them(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    for sites, factor in ((3, 1.0), (1, 3.0), (6, 1.0)):
        more = reckon(run, replace(PROBE, sites=sites, exchange_seconds=1.25)).seconds
        less = reckon(run, replace(PROBE, sites=sites, exchange_seconds=0.25)).seconds
        assert more - less == pytest.approx(5 * factor)  # four rounds and the evaluation


def test_compiling_is_paid_once_a_run(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert reckon(run, replace(PROBE, compile_seconds=40.0)).seconds - reckon(run, PROBE).seconds == pytest.approx(40.0)


def numbers(*sites: tuple[float, float]) -> dict[str, dict[str, float]]:
    """Of a round: ``seconds`` and ``data_seconds`` of the sites."""
    return {f"site_{name}": {"seconds": total, "data_seconds": data} for name, (total, data) in zip("abc", sites, strict=False)}


def test_a_step_is_told_from_the_slabs_that_it_sees_first(tmp_path: Path) -> None:
    values = load_recipe("late_lora_cached").to_dict()

    def costs(slabs_per_case: int) -> StepCosts:
        recipe = Recipe.from_dict(values | {"cache": {"slabs_per_case": slabs_per_case}})
        rounds = [numbers((20.0, 9.0), (20.0, 9.0), (20.0, 9.0)), numbers((9.0, 6.0), (9.0, 6.0), (6.0, 3.0))]
        return step_costs(rounds, setups(tmp_path, recipe=recipe), 3)

    assert astuple(costs(100)) == pytest.approx((9.0 / 9, 15.0 / 18, 0.0))
    # two slabs a step, six a round: pools of 9, 6 and 3, of which the second round sees 3, 0 and 0
    assert astuple(costs(3)) == pytest.approx((9.0 / 9, 15.0 / 3, 0.0))
    # pools of 3, 2 and 1: all in the first round
    assert astuple(costs(1)) == pytest.approx((24.0 / 9, 27.0 / 6, 0.0))
    plain = step_costs([numbers((9.0, 1.0)), numbers((6.0, 1.0))], setups(tmp_path)[:1], 3)
    assert plain == StepCosts(2.0, 0.0, 0.0)


def test_what_compiling_takes_is_what_the_slowest_first_round_takes_more(tmp_path: Path) -> None:
    sites = [replace(site, compiled=True) for site in setups(tmp_path)]
    rounds = [numbers((50.0, 1.0), (9.0, 1.0), (45.0, 1.0)), numbers((6.0, 1.0), (6.0, 1.0), (6.0, 1.0))]
    assert step_costs(rounds, sites, 3) == StepCosts(2.0, 0.0, 44.0)
    assert step_costs(rounds[::-1], sites, 3).compile_seconds == 0.0


def test_a_site_that_is_left_out_is_scored_without_messages(tmp_path: Path) -> None:
    run = a_run(tmp_path, val_every=0)
    found, left = reckon(run, PROBE), reckon(replace(run, sites=run.sites[:2], held_out=run.sites[2]), PROBE)
    assert left.bytes_up == 4 * 2 * 100
    assert found.seconds - left.seconds == pytest.approx(4 * 6.0 + (2 * (3.744 + 1.0) + 0.25) - 3.744)


def test_the_table_names_all_runs(tmp_path: Path) -> None:
    found: Estimate = reckon(a_run(tmp_path), PROBE)
    text = estimate_table(replace(found, runs=3, bytes_up=1.5e9, bytes_down=999.0, seconds=600.0))
    assert text.startswith("3 runs of 4 rounds")
    assert "1.50 GB" in text and "999.00 B" in text and "10.0 min" in text
    assert "2 x 1.07 GB for the workers, 536.87 MB for the server" in text
    assert "memory" not in estimate_table(replace(found, worker_bytes=None))


@pytest.mark.parametrize("recipe", ["flap_sam", "fedsa_lora", "fedex", "int4", "late_lora_cached"])
def test_a_probe_weighs_the_runs_own_messages_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    monkeypatch.setattr(train_probe, "simulate", DirectSimulation())
    run = a_run(tmp_path, recipe)
    before = sorted(tmp_path.rglob("*"))
    measured = probe(run, started=time.perf_counter())
    assert sorted(tmp_path.rglob("*")) == before
    assert min(measured.step_seconds, measured.voxel_seconds, measured.site_seconds, measured.start_up_seconds) > 0
    assert (measured.slab_seconds > 0) == (recipe == "late_lora_cached") and measured.sites == 3 and measured.compile_seconds == 0
    assert measured.models == (2 if recipe == "fedsa_lora" else 1)
    federation = Federation(tmp_path / "truth", recipe=a_recipe(recipe), wire=run.model.recipe.aggregation.wire)
    final = federation.loop.evaluate(federation.run()).traffic
    said = reckon(replace(run, schedule=replace(run.schedule, rounds=3)), measured)
    records = [record.communication for record in federation.records] + [final]
    for way, number in (("up", said.bytes_up), ("down", said.bytes_down)):
        assert number == pytest.approx(sum(site[way]["bytes_message"] for each in records for site in each["sites"].values()), rel=0.3)


def test_few_of_many_sites_are_probed_where_updates_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def noting(sites, server, *, workers):  # type: ignore[no-untyped-def]
        asked.append([site.site for site in sites])
        DirectSimulation()(sites, server, workers=workers)

    monkeypatch.setattr(train_probe, "simulate", noting)
    names = {f"site_{number}": 1 for number in range(5)}
    sites = tuple(setups(tmp_path, names))
    few = a_run(tmp_path, sites=sites, workers=1)
    estimate([few], started=time.perf_counter())
    values = few.model.recipe.to_dict()
    median = few.model.recipe.from_dict(values | {"aggregation": values["aggregation"] | {"strategy": "fedmedian"}})
    model = replace(few.model, recipe=median)
    estimate([replace(few, model=model, sites=tuple(replace(site, model=model) for site in sites))], started=time.perf_counter())
    assert asked == [["site_0", "site_2"], sorted(names)]
