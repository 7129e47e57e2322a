"""The audit trail at both ends of the wire: a site writes a line before bytes leave, the server holds it to what it has told."""

import math
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedsam_pipeline.federation.audit_chain import START, AuditChain, AuditEntry, Head, NameDigest, listed
from fedsam_pipeline.federation.audit_heads import AuditHeads, TrailBroken
from fedsam_pipeline.federation.codec.payload import told_names
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.flower.clipping import EPSILON
from fedsam_pipeline.flower.messages import AUDIT_HEAD, AUDIT_PREVIOUS, CONFIG, PAYLOAD, content_sha256, from_record, message_bytes

_MAX_TEXT = 64


class SiteTrail:
    """What one site notes of one message and of its answer.

    Args:
        site: its name.
        folder: where its trail is.
        asked: the message.
    """

    def __init__(self, site: str, folder: Path, asked: Message) -> None:
        self._site, self._asked = site, asked
        self._chain = AuditChain(folder)

    def received(self) -> None:
        """Notes the message.

        Raises:
            FedsamError: the trail cannot be written, or its end was edited.
        """
        self._chain.append(self._entry("in", self._asked.content))

    def leaving(self, content: RecordDict) -> None:
        """Notes the answer, and puts the head of the trail into it.

        Raises:
            FedsamError: as for ``received``: then the answer must not leave.
        """
        config = content.config_records[CONFIG]
        config[AUDIT_HEAD] = config[AUDIT_PREVIOUS] = str(START)  # as many bytes as those to come
        head, previous = self._chain.append(self._entry("out", content))
        config[AUDIT_HEAD], config[AUDIT_PREVIOUS] = str(head), str(previous)

    def _entry(self, direction: str, content: RecordDict) -> AuditEntry:
        asked = self._asked.content.config_records.get(CONFIG, ConfigRecord())
        said = content.config_records.get(CONFIG, ConfigRecord())
        return AuditEntry.model_validate(
            {
                "site": self._site,
                "direction": direction,
                "message": self._asked.metadata.message_type[:_MAX_TEXT],
                "run_id": _text(asked, "run_id"),
                "round": _whole(asked, "round"),
                "attempt": _whole(asked, "attempt"),
                "plan_sha256": _text(asked, "plan_sha256"),
                "tensors": _tensors(content),
                "bytes": message_bytes(content),
                "payload_sha256": content_sha256(content),
                "failure": _text(said, "failure") if direction == "out" else None,
                "epsilon": _spent(asked),
            }
        )


def _text(config: ConfigRecord, key: str) -> str | None:
    value = config.get(key)
    return value[:_MAX_TEXT] if isinstance(value, str) else None


def _whole(config: ConfigRecord, key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _spent(config: ConfigRecord) -> float | None:
    """What the server says that the states so far have spent; ``None`` without differential privacy, or where it is no such number."""
    value = config.get(EPSILON)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf else None


def _tensors(content: RecordDict) -> tuple[str, ...] | NameDigest | None:
    """Names of all tensors; those of records beside the payload have the record's name before them."""
    names: list[str] = []
    for record_name, record in content.items():
        if not isinstance(record, ArrayRecord):
            continue
        if record_name != PAYLOAD:
            names += [f"{record_name}/{name}" for name in record]
            continue
        try:
            names += told_names(from_record(record))
        except UpdateRefused:
            return None
    return listed(names)


def trail_fault(heads: AuditHeads, message: Message, site: str) -> str | None:
    """Holds the head in a site's reply to what is known; why the reply cannot be taken, ``None`` where it can.

    Args:
        heads: of the run's sites. They are on the disk after ``keep`` only.
        message: the reply, without a Flower error.
        site: who sent it, by a claim that holds.
    """
    config = message.content.config_records[CONFIG]
    try:
        head, previous = (Head.parse(str(config.get(key))) for key in (AUDIT_HEAD, AUDIT_PREVIOUS))
    except ValueError as error:
        return f"it comes without the head of the site's audit trail ({error})"
    kind = message.metadata.message_type[:_MAX_TEXT]
    try:
        heads.take(site, head, previous, message=kind, payload_sha256=content_sha256(message.content))
    except TrailBroken as error:
        return str(error)
    return None
