"""What all typed documents share: validation that lists every fault at once, canonical JSON, a hash."""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from fedsam_pipeline.errors import FedsamError, fault_list
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.specs.canonical import canonical, sha256_of

SHOWN_VALUE = 60
"""letters of a refused value that an error shows"""


class Rule(NamedTuple):
    """Values of a document that must fit each other, or something outside of it."""

    keys: tuple[str, ...]
    """top-level keys that it reads: it is judged as soon as these are valid by themselves, whatever is wrong with the others"""
    faults: Callable[[Any], Iterable[str]]
    """of a document, every fault as ``key: what is wrong``"""


class ContradictionError(ValueError):
    """Raised by a document whose values are valid one by one but do not fit each other."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class Document(BaseModel):
    """A frozen record that one stage writes and another reads.

    Unknown keys are refused, so that a hand-edited file with a misspelt key is noticed. Floats are kept at nine significant digits in
    files and in the hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rules: ClassVar[tuple[Rule, ...]] = ()
    """what every such document must fulfil beyond the types of its keys"""

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        if faults := list(_broken(self.rules, self)):
            raise ContradictionError(faults)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, floats at nine significant digits, keys sorted."""
        result: dict[str, Any] = canonical(self.model_dump(mode="json"))
        return result

    def sha256(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256_of(self.model_dump(mode="json"))

    def save(self, path: Path) -> None:
        """Writes the document as indented JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, value: Any, *, path: Path | str | None = None, fix: str | None = None, rules: Sequence[Rule] = ()) -> Self:
        """Validates ``value``.

        Args:
            value: what a file held.
            path: that file, for the message.
            fix: what the user should do.
            rules: to be fulfilled besides the document's own.

        Raises:
            FedsamError: names every offending key at once: unknown, missing, of another type, out of range, or contradicting another.
        """
        try:
            document = cls.model_validate(value)
            faults = list(_broken(rules, document))
        except ValidationError as error:
            details = error.errors()
            faults = [fault for detail in details if not _follows(detail, details) for fault in _described(cls, detail)]
            faults += cls._contradictions(value, {detail["loc"][0] for detail in details if detail["loc"]}, rules)
        if faults:
            raise FedsamError(
                f"not a valid {cls.__name__} document",
                path=path,
                found=fault_list(faults),
                expected=f"the keys of {cls.__name__} in docs/formats.md",
                fix=fix or "mend or delete these keys, or make the file anew",
            )
        return document

    @classmethod
    def load(cls, path: Path, *, fix: str | None = None, rules: Sequence[Rule] = ()) -> Self:
        """Reads and validates a file; ``FedsamError`` when missing, broken, or invalid, see ``from_dict``."""
        return cls.from_dict(read_json(path, fix=fix), path=path, fix=fix, rules=rules)

    @classmethod
    def _contradictions(cls, value: Any, bad: set[int | str], rules: Sequence[Rule]) -> Iterator[str]:
        """What can still be said of a document with bad keys: the faults of all rules that read none of them."""
        if not isinstance(value, Mapping):
            return
        own = () if not bad else cls.rules  # without a bad key pydantic has called these
        if judged := [rule for rule in (*own, *rules) if not bad.intersection(rule.keys)]:
            yield from _broken(judged, cls._draft(value, bad))

    @classmethod
    def _draft(cls, value: Mapping[str, Any], bad: set[int | str]) -> "Document":
        """An unchecked document of all keys but the bad ones, each converted to its type."""
        sound: dict[str, Any] = {}
        for name in value.keys() & cls.model_fields.keys() - bad:
            field = cls.model_fields[name]
            kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            sound[name] = TypeAdapter(kind).validate_python(value[name])
        return cls.model_construct(**sound)


def _broken(rules: Iterable[Rule], document: Document) -> Iterator[str]:
    for rule in rules:
        yield from rule.faults(document)


def _follows(detail: Any, details: Sequence[Any]) -> bool:
    """Whether pydantic calls a list too short only because it left out an entry with faults of its own."""
    place = detail["loc"]
    return detail["type"] == "too_short" and any(other["loc"][: len(place)] == place and other["loc"] != place for other in details)


def _described(model: type[Document], detail: Any) -> Iterator[str]:
    """``key: what is wrong, found ...``, from one of pydantic's errors; a contradiction may be several faults."""
    where = ".".join(str(part) for part in detail["loc"])
    reason = detail.get("ctx", {}).get("error")
    if isinstance(reason, ContradictionError):
        yield from (f"{where}.{fault}" if where else fault for fault in reason.faults)
    elif detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(detail["loc"][-1]), _known_keys(model, detail["loc"][:-1]), n=1)
        yield f"{where}: unknown key{f', did you mean {near[0]}?' if near else ''}"
    elif detail["type"] == "missing":
        yield f"{where}: missing"
    else:
        message = str(reason) if isinstance(reason, ValueError) else detail["msg"]
        found = "" if isinstance(detail["input"], Mapping) else f", found {_shown(detail['input'])}"
        yield f"{where or '(document)'}: {message}{found}"


def _known_keys(model: type[Document], place: Sequence[int | str]) -> list[str]:
    """The keys of the document that stands at ``place`` inside one of type ``model``; none where that is no document."""
    for part in place:
        if isinstance(part, str):
            field = model.model_fields.get(part)
            inner = None if field is None else _document_in(field.annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _document_in(annotation: Any) -> type[Document] | None:
    """The document type in an annotation such as ``tuple[ChannelPlan, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Document):
        return annotation
    return next((found for part in get_args(annotation) if (found := _document_in(part)) is not None), None)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN_VALUE else text[:SHOWN_VALUE] + "..."
