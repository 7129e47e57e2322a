"""What crosses the wire: message types, record keys, and how records are built and read."""

import hashlib
import io
import math

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from numpy.typing import NDArray
from torch import Tensor

from fedsam_pipeline.federation.updates import UpdateRefused

TRAIN_ROUND, EVALUATE_FOLD = "train.round", "evaluate.fold"
QUERY_FINGERPRINT, QUERY_PLAN = "query.fingerprint", "query.plan"
QUERY_CONFIGURATIONS, QUERY_POSTPROCESSING = "query.configurations", "query.postprocessing"
QUERY_DECRYPTED_SUM = "query.decrypted_sum"
PAYLOAD, CONFIG, METRICS = "payload", "config", "metrics"
NUM_EXAMPLES = "num_examples"
FOLDED = "folded"
"""record of what FedEx-LoRA has folded into the base weights, to the site only"""
DECODE_SECONDS, ENCODE_SECONDS = "decode_seconds", "encode_seconds"
VALIDATION_SECONDS, BUSY_SECONDS = "validation_seconds", "busy_seconds"
"""of scoring; of the whole message, once the model was there"""
REFERENCE_MISSING = "reference_missing"
"""a site's answer to a payload whose reference it does not hold: the server sends the full state"""
ENCRYPTED, DECRYPTED = "encrypted", "decrypted"
"""records of encrypted values, in place of a payload: of an update, of the sum to the site that decrypts
it; and of what that decrypts to"""
ENCRYPTED_SITES, PARTS = "encrypted_sites", "parts"
"""keys of the train message's config: sites whose encrypted updates must fit into one sum, without it updates travel in plain; and
of the question for a decrypted sum: updates that are in it"""
DECRYPT_SECONDS = "decrypt_seconds"
PROXIMAL_MU = "proximal-mu"
"""key of the train message's config under which Flower's FedProx sends the strength of the proximal term"""
KEEP_MASKS = "keep_masks"
"""key of the evaluate message's config: whether the sites keep the masks, from which postprocessing is chosen"""
DECIDED, CANDIDATES, SUMS = "decided", "candidates", "sums"
"""of the question for postprocessing: rules that apply before, rules to judge; and of its answer"""
VALIDATION, VALIDATION_SHARED = "validation", "validation_shared"
"""scores of a site's own model, and of the one that all sites share, where some tensors stay at the sites"""

AUDIT_HEAD, AUDIT_PREVIOUS = "audit_head", "audit_previous"
"""keys of every reply's config: head of the site's audit trail with the line of this reply, and with the one of its last reply before"""


def to_arrays(tensors: dict[str, Tensor]) -> ArrayRecord:
    """Tensors as a Flower record, in sorted order."""
    return ArrayRecord({name: Array(tensors[name].detach().cpu().numpy()) for name in sorted(tensors)})


def from_arrays(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """The arrays of a record.

    Raises:
        UpdateRefused: an array cannot be read.
    """
    return {name: _read(name, array) for name, array in record.items()}


def _read(name: str, array: Array) -> NDArray[np.generic]:
    """One array. Flower reads it with ``allow_pickle=False``, so its bytes run no code, whatever they are."""
    try:
        _check_size(array.data)
        read = array.numpy()
    except Exception as error:  # the bytes may be anything, and so may be what NumPy's parsers raise: MemoryError, RecursionError, OSError
        raise UpdateRefused(f"array {name!r:.80} cannot be read ({type(error).__name__})") from error
    return read


def _check_size(data: bytes) -> None:
    """NumPy makes an array of the size that its header says before it looks for the values.

    Raises:
        ValueError: the values behind the header are more or fewer, or no numbers; or the bytes are no array, but an archive of them.
    """
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("another version of the format than NumPy writes for numbers")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in "biuf" or dtype.itemsize * math.prod(shape) != len(data) - stream.tell():
        raise ValueError("values of another kind or number than the header says")


def to_record(payload: bytes) -> ArrayRecord:
    """The codec's bytes as a Flower record of one array of bytes."""
    return ArrayRecord({PAYLOAD: Array(np.frombuffer(payload, np.uint8))})


def from_record(record: ArrayRecord) -> bytes:
    """The codec's bytes out of a record.

    Raises:
        UpdateRefused: the record is anything else than one array of bytes, or cannot be read.
    """
    if set(record) != {PAYLOAD}:
        raise UpdateRefused(f"a record of {len(record)} arrays, expected one of bytes")
    payload = _read(PAYLOAD, record[PAYLOAD])
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise UpdateRefused(f"an array of {payload.ndim} axes of {payload.dtype!s:.80}, expected one of bytes")
    return payload.tobytes()


def message_bytes(content: RecordDict) -> int:
    """Bytes of a message's content as Flower serialises it."""
    return int(recorddict_to_proto(content).ByteSize())


def content_sha256(content: RecordDict) -> str:
    """SHA-256 of a message's content as Flower serialises it, but for the keys of the audit trail, which come to it last."""
    told = {name: _without_audit(record) if isinstance(record, ConfigRecord) else record for name, record in content.items()}
    return hashlib.sha256(recorddict_to_proto(RecordDict(told)).SerializeToString()).hexdigest()


def _without_audit(record: ConfigRecord) -> ConfigRecord:
    return ConfigRecord({key: value for key, value in record.items() if key not in (AUDIT_HEAD, AUDIT_PREVIOUS)})
