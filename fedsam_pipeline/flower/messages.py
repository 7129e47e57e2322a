"""What crosses the wire: message types, record keys, and how records are built and read."""

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from numpy.typing import NDArray
from torch import Tensor

TRAIN_ROUND, EVALUATE_FOLD = "train.round", "evaluate.fold"
PAYLOAD, CONFIG, METRICS = "payload", "config", "metrics"
NUM_EXAMPLES = "num_examples"
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


def message_bytes(content: RecordDict) -> int:
    """Bytes of a message's content as Flower serialises it."""
    return int(recorddict_to_proto(content).ByteSize())
