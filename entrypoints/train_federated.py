"""fedsam_train_federated: federated, local or centralized training of a recipe."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fedsam_pipeline.entrypoints.command import (
    command_parser,
    not_negative_int,
    positive_float,
    positive_int,
    refuse_unused,
    run_command,
    setting,
    share,
)
from fedsam_pipeline.federation.codec.wires import WIRES
from fedsam_pipeline.federation.lora_aggregation.methods import LORA_METHODS
from fedsam_pipeline.federation.strategy_settings import STRATEGIES
from fedsam_pipeline.federation.weighting import WEIGHTINGS
from fedsam_pipeline.pipeline.plans_file import planned_dataset
from fedsam_pipeline.pipeline.run_timing import process_started
from fedsam_pipeline.pipeline.submit_federation import submit_federation
from fedsam_pipeline.pipeline.train import train_all
from fedsam_pipeline.pipeline.train_estimate import estimate, estimate_table
from fedsam_pipeline.pipeline.train_request import TrainRequest, run_setups
from fedsam_pipeline.pipeline.train_table import result_table
from fedsam_pipeline.specs.comparison import Protocol
from fedsam_pipeline.specs.configuration import Configuration


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command_parser("fedsam_train_federated", "Train a recipe on a planned dataset. Values left open come from the plan.")
    parser.add_argument("-d", metavar="DATASET", help="number or name of the dataset; not needed when only one is planned")
    parser.add_argument("-r", default="default", metavar="RECIPE", help="recipe: a name, or a TOML file")
    parser.add_argument("-p", default="plans", metavar="PLANS", help="name of the plans")
    parser.add_argument(
        "-c",
        choices=get_args(Configuration),
        default="main",
        help="slices along the plan's axis, or along all three axes by one model (triplanar), where the plan offers that",
    )
    parser.add_argument(
        "-f",
        default="0",
        metavar="FOLD",
        help="fold 0 to 4; all trains on everything and validates nothing; 0-inner splits the training part of fold 0 again, for choices",
    )
    parser.add_argument("-m", metavar="BASE_MODEL", help="base model that the plan must be for")
    parser.add_argument(
        "--protocol",
        choices=get_args(Protocol),
        default="federated",
        help="all sites together, each site alone (one run a site), one site that holds all cases and takes the summed steps, or all sites "
        "but one, scored on that one (one run a site)",
    )
    parser.add_argument("--rounds", type=positive_int, help="rounds of aggregation")
    parser.add_argument("--local_steps", type=positive_int, help="optimizer steps a site takes in a round")
    parser.add_argument("--lr", type=positive_float, help="peak learning rate")
    parser.add_argument(
        "--val_every",
        type=not_negative_int,
        metavar="ROUNDS",
        help="score the global model every so many rounds on at most 8 cases a site; 0 never (default: a fifth of the rounds)",
    )
    parser.add_argument("--strategy", choices=STRATEGIES, help="Flower's strategy (default: the recipe's)")
    parser.add_argument(
        "--lora_method",
        choices=(*LORA_METHODS, "none"),
        help="how LoRA's factors are aggregated, see docs/aggregation.md (default: the recipe's)",
    )
    parser.add_argument(
        "--weighting",
        choices=WEIGHTINGS,
        help="weight of a site: its training cases, the same for all, or more where the shared model does badly (default: the recipe's)",
    )
    parser.add_argument(
        "--strategy_option",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the strategy or LoRA method, such as proximal_mu=0.1; may be repeated",
    )
    parser.add_argument(
        "--wire",
        choices=WIRES,
        help="how states and updates travel, as differences: exactly (fp32), or in a half (fp16), a quarter (int8) or an eighth of the "
        "bytes (int4) (default: the recipe's)",
    )
    parser.add_argument("--seed", type=not_negative_int, default=0, help="of all random draws")
    parser.add_argument("-device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute")
    parser.add_argument("--compile", action="store_true", help="compile the image encoder: the first steps are slow; for long runs")
    parser.add_argument(
        "--workers", type=positive_int, help="sites that compute at the same time in simulation (default: as many as cores)"
    )
    parser.add_argument(
        "-gpu_memory_target",
        type=positive_float,
        metavar="GIB",
        help="memory for the images of a step, on the GPU or, without one, of the host (default: most of what is free); a site whose step "
        "needs more takes it in parts, with the same result",
    )
    parser.add_argument(
        "--random_encoder", action="store_true", help="control experiment: draw the image encoder at random, keep the pre-trained decoder"
    )
    parser.add_argument(
        "--init",
        type=Path,
        metavar="FOLDER",
        help="start from this trained fold's adapter instead of a fresh one; with --protocol local, each site adapts it alone",
    )
    parser.add_argument(
        "--interpolate",
        type=share,
        metavar="SHARE",
        help="with --init and --protocol local: keep the model that lies so far on the way from the start to what was trained (default: 1)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="take a few steps, estimate minutes, bytes and memory of the whole run, and keep nothing"
    )
    parser.add_argument(
        "--superlink",
        metavar="NAME",
        help="train with the hospitals of a real federation: name of its connection in Flower's configuration (docs/deploy.md)",
    )
    parser.add_argument(
        "--sites", type=lambda text: text.split(","), metavar="A,B,...", help="with --superlink: the sites that take part (default: all)"
    )
    parser.add_argument(
        "--min_sites",
        type=positive_int,
        metavar="N",
        help="updates that a round needs: it goes on without the other sites, which may come back (default: all in simulation, more than "
        "half of real sites)",
    )
    parser.add_argument(
        "--round_timeout",
        type=positive_float,
        metavar="SECONDS",
        help="how long an answer is waited for, and enough sites to be there (default: without end in simulation, 3600 of real sites)",
    )
    parser.add_argument(
        "--wait_lost",
        type=positive_float,
        metavar="SECONDS",
        help="with --superlink: how long a round waits, before it begins, for sites that took part and are gone, such as one that starts "
        "again after a power cut; a SuperLink lets it in a minute later (default: not at all)",
    )
    parser.add_argument(
        "--dp_epsilon",
        type=positive_float,
        metavar="E",
        help="differential privacy of the model with regard to whole sites: budget of the run; with a handful of sites it costs nearly all "
        "accuracy, see docs/privacy.md (default: none)",
    )
    parser.add_argument("--dp_delta", type=positive_float, metavar="D", help="of that budget, below 1 / sites")
    parser.add_argument(
        "--dp_clip", type=positive_float, metavar="C", help="largest norm of a site's update in a round; larger ones are scaled"
    )
    parser.add_argument(
        "--encrypt",
        action="store_true",
        help="the sites encrypt their updates and the server learns the sum alone; needs the extra encryption, --wire fp32 and a strategy "
        "of the mean (docs/privacy.md)",
    )
    parser.add_argument("--c", dest="resume", action="store_true", help="continue an interrupted run from its last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start over where a run exists")
    return parser


def _body(arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        refuse_unused({"--encrypt": arguments.encrypt}, "a run without --dry_run: see docs/privacy.md for its bytes and seconds")
        refuse_unused({"--c": arguments.resume}, "a run without --dry_run: the estimate is of a whole run")
        refuse_unused({"--superlink": arguments.superlink}, "a run without --dry_run: hospitals cannot be probed from here")
    request = TrainRequest(
        recipe=arguments.r,
        plans_name=arguments.p,
        configuration=arguments.c,
        base_model=arguments.m,
        fold=arguments.f,
        protocol=arguments.protocol,
        rounds=arguments.rounds,
        local_steps=arguments.local_steps,
        learning_rate=arguments.lr,
        val_every=arguments.val_every,
        seed=arguments.seed,
        device=arguments.device,
        compiled=arguments.compile,
        workers=arguments.workers,
        gpu_memory_target=arguments.gpu_memory_target,
        strategy=arguments.strategy,
        lora_method=arguments.lora_method,
        weighting=arguments.weighting,
        strategy_options=dict(arguments.strategy_option),
        wire=arguments.wire,
        random_encoder=arguments.random_encoder,
        init=arguments.init,
        interpolate=arguments.interpolate,
        min_sites=arguments.min_sites,
        round_timeout=arguments.round_timeout,
        wait_lost=arguments.wait_lost,
        dp_epsilon=arguments.dp_epsilon,
        dp_delta=arguments.dp_delta,
        dp_clip=arguments.dp_clip,
        encrypt=arguments.encrypt,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    if arguments.superlink is None:
        refuse_unused({"--sites": arguments.sites}, "--superlink: in simulation they stand in dataset.json")
        refuse_unused({"--wait_lost": arguments.wait_lost}, "--superlink: simulated sites do not go")
    else:
        submit_federation(arguments.superlink, arguments.d, arguments.sites, request)
        return
    folders, preprocessed = planned_dataset(arguments.d, arguments.p)
    setups = run_setups(preprocessed, folders.results, request)
    if arguments.dry_run:
        print(estimate_table(estimate(setups, started=process_started())))
    else:
        print(result_table(train_all(setups, request, started=process_started())))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(build_parser(), _body, argv)
