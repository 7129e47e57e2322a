"""The ClientApp: turns messages into calls of ``SiteWorker`` and its answers into replies.

What leaves a site is in ``messages.py`` and here: tensors of the manifest, counts, means. No case name, no path, no exception text: a
failure is a code and an opaque id; the log of that site has the rest under the same id.
"""

import json
import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.evaluation.summary import SiteDice
from fedsam_pipeline.federation.codec.coding import ReferenceMissing
from fedsam_pipeline.federation.codec.wires import WIRES
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.flower.audit import SiteTrail
from fedsam_pipeline.flower.clipping import CLIP
from fedsam_pipeline.flower.kept_masks import KeptMasks
from fedsam_pipeline.flower.messages import (
    BUSY_SECONDS,
    CANDIDATES,
    CONFIG,
    DECIDED,
    DECODE_SECONDS,
    DECRYPTED,
    ENCODE_SECONDS,
    ENCRYPTED,
    FOLDED,
    KEEP_MASKS,
    METRICS,
    NUM_EXAMPLES,
    PAYLOAD,
    PROXIMAL_MU,
    REFERENCE_MISSING,
    SUMS,
    VALIDATION,
    VALIDATION_SECONDS,
    VALIDATION_SHARED,
    from_arrays,
    from_record,
    to_record,
)
from fedsam_pipeline.flower.site_encryption import (
    KeyMissing,
    PlainRefused,
    SumRefused,
    decrypted_sum,
    encrypted_update,
    encrypting_sites,
)
from fedsam_pipeline.flower.site_postprocessing import answer
from fedsam_pipeline.flower.site_worker import SiteSetup, SiteWorker, StateMissing
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.memory import keep_freed_memory
from fedsam_pipeline.specs.manifest import Wire
from fedsam_pipeline.specs.postprocessing import MaskRule
from fedsam_pipeline.training.local_trainer import RunSchedule, TrainingDiverged

log = logging.getLogger(__name__)
MAX_STEPS = 10**7
"""of a run's schedule, which a site goes through when it judges how far a state can be"""
MAX_CASES_MID_RUN = 8
"""Validation cases a site scores between rounds; after the last round it scores all"""

FindSetup = Callable[[Context, RecordDict], SiteSetup]


class AgreementBroken(ValueError):
    """A hash of plan, recipe or base weights, or what is asked for, is not what this site agreed to."""


class SiteProcess(Protocol):
    """What it takes to answer for a site: its name, its threads, the folder of its log."""

    @property
    def site(self) -> str: ...

    @property
    def num_threads(self) -> int: ...

    @property
    def state_folder(self) -> Path: ...


S = TypeVar("S", bound=SiteProcess)


_CODES: tuple[tuple[type[Exception], str], ...] = (
    (AgreementBroken, "agreement_broken"),
    (ReferenceMissing, REFERENCE_MISSING),
    (UpdateRefused, "update_refused"),
    (StateMissing, "state_missing"),
    (TrainingDiverged, "training_diverged"),
    (KeyMissing, "encryption_key_missing"),
    (PlainRefused, "encryption_required"),
    (SumRefused, "sum_refused"),
    (FedsamError, "bad_input"),
)
UNKNOWN_SITE = "unknown"


def make_client_app(find_setup: FindSetup) -> ClientApp:
    """A ClientApp whose site is found from Flower's context (a partition in simulation, the node's configuration at a hospital) and, at a
    hospital, from the run that the message names."""
    app = ClientApp()

    @app.train("round")
    def train(message: Message, context: Context) -> Message:
        return answer_safely(message, context, find_setup, _train)

    @app.evaluate("fold")
    def evaluate(message: Message, context: Context) -> Message:
        return answer_safely(message, context, find_setup, _evaluate)

    @app.query("postprocessing")
    def postprocessing(message: Message, context: Context) -> Message:
        return answer_safely(message, context, find_setup, _postprocessing)

    @app.query("decrypted_sum")
    def decrypted(message: Message, context: Context) -> Message:
        return answer_safely(message, context, find_setup, _decrypted_sum)

    return app


def answer_safely(
    message: Message, context: Context, find_setup: Callable[[Context, RecordDict], S], handler: Callable[[RecordDict, S], RecordDict]
) -> Message:
    """Runs a handler; whatever goes wrong stays in the site's log, and a code with an opaque id goes back."""
    site = UNKNOWN_SITE
    try:
        setup = find_setup(context, message.content)
        site = setup.site
        torch.set_num_threads(setup.num_threads)
        keep_freed_memory()
        logging.getLogger("fedsam_pipeline").setLevel(logging.INFO)
        with log_file(setup.state_folder / "logs", "site", dated=False):
            content = _audited(message, setup, handler)
    except Exception as error:  # there is no log of the site yet; the process's own takes it
        content = _failure(site, error)
    return Message(content, reply_to=message)


def _audited(message: Message, setup: S, handler: Callable[[RecordDict, S], RecordDict]) -> RecordDict:
    """The handler's answer, or the failure's; both messages are in the audit trail before it leaves."""
    trail = SiteTrail(setup.site, setup.state_folder, message)
    try:
        trail.received()
        content = handler(message.content, setup)
    except Exception as error:
        content = _failure(setup.site, error)
    try:
        trail.leaving(content)
    except Exception as error:  # what is not in the trail stays here, but for this code
        content = _failure(setup.site, error)
    return content


def _failure(site: str, error: Exception) -> RecordDict:
    """What the server learns of a failure; the log has the rest under the same id."""
    opaque = secrets.token_hex(4)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "internal")
    log.error("failure %s (%s)", opaque, code, exc_info=error)
    failure = ConfigRecord({"site": site, "failure": code, "failure_id": opaque})
    return RecordDict({CONFIG: failure, METRICS: MetricRecord({NUM_EXAMPLES: 0})})


def _checked_config(content: RecordDict, setup: SiteSetup) -> ConfigRecord:
    config = content.config_records[CONFIG]
    for name, agreed in setup.model.agreement().items():
        if config[name] != agreed:
            raise AgreementBroken(f"{name}: the message has {config[name]!r}, this site agreed to {agreed}")
    return config


def _train(content: RecordDict, setup: SiteSetup) -> RecordDict:
    config = _checked_config(content, setup)
    schedule = _schedule(config)
    round_number = _whole(config, "round")
    wire = _wire(config)
    sites = encrypting_sites(config, setup)  # before the work that would be for nothing
    if sites and setup.model.recipe.cache is None:  # features are kept for one seed
        schedule = replace(schedule, seed=secrets.randbelow(1 << 31))  # the site's own: two sums of a round differ by more than a site
    worker = SiteWorker(setup)
    started = time.perf_counter()  # the model is there
    decode_seconds = _receive(content, worker, rounds_done=round_number - 1)
    clip = _clip(config)
    worker.check_received(schedule, wire, round_number - 1, noisy=clip is not None)
    received = time.perf_counter()
    validation = worker.evaluate(rounds_done=round_number - 1, max_cases=MAX_CASES_MID_RUN) if config["validate"] else {}
    validation_seconds = time.perf_counter() - received
    proximal_mu = _number(config, PROXIMAL_MU) if PROXIMAL_MU in config else 0.0
    if not 0 <= proximal_mu < math.inf:
        raise AgreementBroken(f"a proximal term of strength {proximal_mu:g}")
    encoded, result = worker.train(schedule, round_number, wire=wire, proximal_mu=proximal_mu, clip=clip)
    log.info("%s round %d: loss %.4f, %.1f s", setup.site, round_number, result.loss, result.seconds)
    payload, encode_seconds = {PAYLOAD: to_record(encoded.payload)}, encoded.figures.seconds
    if sites:
        part, encode_seconds = encrypted_update(encoded.decoded, worker.received, config, setup, sites)
        payload = {ENCRYPTED: part}
    metrics = MetricRecord(
        {
            NUM_EXAMPLES: len(setup.train_cases),
            "loss": result.loss,
            "learning_rate": result.last_learning_rate,
            "seconds": result.seconds,
            "data_seconds": result.data_seconds,
            DECODE_SECONDS: decode_seconds,
            ENCODE_SECONDS: encode_seconds,
            VALIDATION_SECONDS: validation_seconds,
            BUSY_SECONDS: time.perf_counter() - started,
        }
    )
    return RecordDict({**payload, CONFIG: _reply_config(config, setup, validation), METRICS: metrics})


def _evaluate(content: RecordDict, setup: SiteSetup) -> RecordDict:
    config = _checked_config(content, setup)
    schedule = _schedule(config)
    worker = SiteWorker(setup)
    started = time.perf_counter()
    rounds_done = _whole(config, "round")
    decode_seconds = _receive(content, worker, rounds_done)
    worker.check_received(schedule, _wire(config), rounds_done, noisy=_clip(config) is not None)
    received = time.perf_counter()
    masks = KeptMasks(setup.state_folder) if config[KEEP_MASKS] else None
    personal = bool(worker.manifest.personal)  # then the shared model is the one that is handed on, and its masks are kept
    validation = worker.evaluate(rounds_done=rounds_done, report=setup.state_folder / "validation.json", masks=None if personal else masks)
    reply = _reply_config(config, setup, validation)
    if personal:
        worker.write_personal_bundle(rounds_done=rounds_done)
        shared = worker.evaluate(rounds_done=rounds_done, personal=False, report=setup.state_folder / "validation_shared.json", masks=masks)
        reply[VALIDATION_SHARED] = _scores(shared, setup)
    ended = time.perf_counter()
    metrics = MetricRecord(
        {
            NUM_EXAMPLES: len(setup.val_cases),
            DECODE_SECONDS: decode_seconds,
            VALIDATION_SECONDS: ended - received,
            BUSY_SECONDS: ended - started,
        }
    )
    return RecordDict({CONFIG: reply, METRICS: metrics})


def _postprocessing(content: RecordDict, setup: SiteSetup) -> RecordDict:
    """No model is needed, and none is built."""
    config = _checked_config(content, setup)
    sums = answer(setup, _rules(config, DECIDED), _rules(config, CANDIDATES))
    reply = {"run_id": config["run_id"], "round": config["round"], "attempt": config["attempt"], "site": setup.site}
    told = ConfigRecord(reply | {SUMS: json.dumps(sums.to_dict(), allow_nan=False)})
    return RecordDict({CONFIG: told, METRICS: MetricRecord({NUM_EXAMPLES: 0})})


def _decrypted_sum(content: RecordDict, setup: SiteSetup) -> RecordDict:
    """No model is needed, and none is built."""
    config = _checked_config(content, setup)
    values, metrics = decrypted_sum(content, config, setup)
    return RecordDict({DECRYPTED: values, CONFIG: _reply_config(config, setup, {}), METRICS: metrics})


def _rules(config: ConfigRecord, key: str) -> list[MaskRule]:
    return [MaskRule.from_dict(value) for value in json.loads(str(config[key]))]


def _schedule(config: ConfigRecord) -> RunSchedule:
    """Of the run, with the message's round in it."""
    rounds, steps, number = (_whole(config, key) for key in ("rounds", "local_steps", "round"))
    rate = _number(config, "learning_rate")
    if not (number <= rounds and rounds * steps <= MAX_STEPS and 0 < rate < math.inf):
        raise AgreementBroken(f"round {number} of {rounds}, of {steps} steps at a learning rate of {rate:g}")
    return RunSchedule(rounds=rounds, local_steps=steps, peak_learning_rate=rate, seed=int(_number(config, "seed")))


def _whole(config: ConfigRecord, key: str) -> int:
    value = _number(config, key)
    if not (1 <= value < math.inf and value == int(value)):
        raise AgreementBroken(f"{key} is {value:g}, not 1 or more")
    return int(value)


def _clip(config: ConfigRecord) -> float | None:
    """Largest norm of an update under differential privacy; ``None``: there is none."""
    if CLIP not in config:
        return None
    clip = _number(config, CLIP)
    if not 0 < clip < math.inf:
        raise AgreementBroken(f"updates clipped to {clip:g}")
    return clip


def _receive(content: RecordDict, worker: SiteWorker, rounds_done: int) -> float:
    """Takes in the state of a message, which comes against the one that this site received for round ``rounds_done``; seconds it took."""
    folded = content.array_records.get(FOLDED)
    payload = from_record(content.array_records[PAYLOAD])
    return worker.receive(payload, {} if folded is None else from_arrays(folded), rounds_done=rounds_done)


def _reply_config(config: ConfigRecord, setup: SiteSetup, validation: dict[str, SiteDice]) -> ConfigRecord:
    return ConfigRecord(
        {
            "run_id": config["run_id"],
            "round": config["round"],
            "attempt": config["attempt"],
            "site": setup.site,
            VALIDATION: _scores(validation, setup),
        }
    )


def _scores(validation: dict[str, SiteDice], setup: SiteSetup) -> str:
    names = tuple(setup.labels.scored)
    return json.dumps({site: dice.to_dict(names) for site, dice in validation.items()})


def _wire(config: ConfigRecord) -> Wire:
    for wire in WIRES:
        if config["wire"] == wire:
            return wire
    raise AgreementBroken(f"wire {config['wire']!r:.40}, this site knows {', '.join(WIRES)}")


def _number(config: ConfigRecord, key: str) -> float:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AgreementBroken(f"{key} is no number")
    return value
