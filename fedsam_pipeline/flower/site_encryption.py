"""Encrypted sums at a site: whether its update is encrypted, its part of the sum, and the sum decrypted for the server."""

import hashlib
import time
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedsam_pipeline.federation.encrypted_sums import SiteCipher
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.federation.weighting import site_weights
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.flower.messages import (
    DECRYPT_SECONDS,
    DECRYPTED,
    ENCRYPTED,
    ENCRYPTED_SITES,
    NUM_EXAMPLES,
    PARTS,
    from_record,
    to_record,
)
from fedsam_pipeline.flower.site_worker import SiteSetup

NOTE_FILE = "encrypted_update.json"
"""in a site's folder: the last round that it sent an encrypted update in, and the sum of that round that it decrypted"""
LEAST_PARTS = 2
"""the sum of one update is that update"""


class KeyMissing(RuntimeError):
    """Encryption is asked for, and this site has no key."""


class PlainRefused(RuntimeError):
    """An update is asked for in plain, and this site has a key: its updates leave it encrypted."""


class SumRefused(RuntimeError):
    """What is to be decrypted is no sum of two updates or more."""


def encrypting_sites(config: ConfigRecord, setup: SiteSetup) -> int:
    """Sites whose encrypted updates must fit into one sum; 0 where updates travel in plain.

    Raises:
        KeyMissing: the message asks for encryption, and there is no key.
        PlainRefused: it does not, and there is one.
        SumRefused: what it asks for is no sum.
    """
    asked = config.get(ENCRYPTED_SITES)
    if asked is None:
        if setup.encryption_key is not None:
            raise PlainRefused(f"the message asks for a plain update; {setup.encryption_key} says that none leaves this site")
        return 0
    _key_file(setup)
    return _at_least_two(asked, ENCRYPTED_SITES)


def encrypted_update(
    tensors: dict[str, Tensor], received: dict[str, Tensor], config: ConfigRecord, setup: SiteSetup, sites: int
) -> tuple[ArrayRecord, float]:
    """What a site adds to the sum, and the seconds it took. The site notes that it did.

    Args:
        tensors, received: as for ``SiteCipher.encrypt``.
        config: of the message.
        setup: of the site.
        sites: whose parts must fit into one sum.

    Raises:
        FedsamError: the key cannot be used.
        UpdateRefused: the update cannot be encrypted.
    """
    started = time.perf_counter()
    weighting = setup.model.recipe.aggregation.weighting
    if weighting == "validation":  # it is the server that knows such a weight, and the site that multiplies
        raise UpdateRefused("weighting by validation: an encrypted update is weighted by this site, by its cases or by 1")
    weight = site_weights(weighting, {setup.site: len(setup.train_cases)})[setup.site]
    payload = SiteCipher.load(_key_file(setup)).encrypt(tensors, received, weight, sites)
    values = sum(tensor.numel() for tensor in tensors.values())
    write_json(setup.state_folder / NOTE_FILE, {"schema_version": 1, **_of_round(config), "values": values})
    return to_record(payload), time.perf_counter() - started


def decrypted_sum(content: RecordDict, config: ConfigRecord, setup: SiteSetup) -> tuple[ArrayRecord, MetricRecord]:
    """The sum of a message, for its answer.

    Raises:
        KeyMissing: this site has no key.
        SumRefused: the message says that fewer than two updates are in it, this site has no part in it or has decrypted another of the
            round, or the sum is of another number of parts or values, or of different keys.
        UpdateRefused: it holds no sum.
    """
    started = time.perf_counter()
    path = _key_file(setup)
    told = _at_least_two(config.get(PARTS), PARTS)
    if ENCRYPTED not in content.array_records:
        raise UpdateRefused(f"the message comes without {ENCRYPTED}")
    note = setup.state_folder / NOTE_FILE
    own: dict[str, Any] = read_json(note) if note.exists() else {}
    if any(own.get(key) != value for key, value in _of_round(config).items()):
        raise SumRefused("this site has no part in that sum: it decrypts those of its own last round alone")
    payload = from_record(content.array_records[ENCRYPTED])
    digest = hashlib.sha256(payload).hexdigest()
    if own.setdefault("decrypted_sha256", digest) != digest:
        raise SumRefused("another sum of this round was decrypted here: the difference of the two would be of fewer sites")
    values, parts = SiteCipher.load(path).decrypt(payload)
    if parts != told or len(values) != own["values"]:
        raise SumRefused("it is no sum of so many parts, one part was made up, or the sites do not all hold the same key")
    write_json(note, own)
    seconds = time.perf_counter() - started
    return ArrayRecord({DECRYPTED: Array(values)}), MetricRecord({NUM_EXAMPLES: 0, DECRYPT_SECONDS: seconds})


def _of_round(config: ConfigRecord) -> dict[str, str]:
    return {key: str(config.get(key)) for key in ("run_id", "round")}


def _key_file(setup: SiteSetup) -> Path:
    if setup.encryption_key is None:
        raise KeyMissing("the message asks for encryption, and this site has no key")
    return setup.encryption_key


def _at_least_two(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < LEAST_PARTS:
        raise SumRefused(f"{key}: found {value!r:.40}, expected {LEAST_PARTS} or more")
    return value
