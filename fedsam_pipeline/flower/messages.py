"""What crosses the wire: message types, record keys, and how records are built and read."""

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from numpy.typing import NDArray
from torch import Tensor

from fedsam_pipeline.federation.updates import UpdateRefused

TRAIN_ROUND, EVALUATE_FOLD = "train.round", "evaluate.fold"
PAYLOAD, CONFIG, METRICS = "payload", "config", "metrics"
NUM_EXAMPLES = "num_examples"
FOLDED = "folded"
"""record of what FedEx-LoRA has folded into the base weights, to the site only"""
DECODE_SECONDS, ENCODE_SECONDS = "decode_seconds", "encode_seconds"
REFERENCE_MISSING = "reference_missing"
"""a site's answer to a payload whose reference it does not hold: the server sends the full state"""
PROXIMAL_MU = "proximal-mu"
"""key of the train message's config under which Flower's FedProx sends the strength of the proximal term"""
VALIDATION, VALIDATION_SHARED = "validation", "validation_shared"
"""scores of a site's own model, and of the one that all sites share, where some tensors stay at the sites"""


def to_arrays(tensors: dict[str, Tensor]) -> ArrayRecord:
    """Tensors as a Flower record, in sorted order."""
    return ArrayRecord({name: Array(tensors[name].detach().cpu().numpy()) for name in sorted(tensors)})


def from_arrays(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """The arrays of a record. Flower reads them with ``allow_pickle=False``."""
    return {name: array.numpy() for name, array in record.items()}


def to_record(payload: bytes) -> ArrayRecord:
    """The codec's bytes as a Flower record of one array of bytes."""
    return ArrayRecord({PAYLOAD: Array(np.frombuffer(payload, np.uint8))})


def from_record(record: ArrayRecord) -> bytes:
    """The codec's bytes out of a record.

    Raises:
        UpdateRefused: the record is anything else than one array of bytes.
    """
    arrays = from_arrays(record)
    if set(arrays) != {PAYLOAD} or arrays[PAYLOAD].dtype != np.uint8 or arrays[PAYLOAD].ndim != 1:
        raise UpdateRefused(f"a record of {len(arrays)} arrays, expected one of bytes")
    return arrays[PAYLOAD].tobytes()


def message_bytes(content: RecordDict) -> int:
    """Bytes of a message's content as Flower serialises it."""
    return int(recorddict_to_proto(content).ByteSize())
