"""What all typed documents share: validation that lists every fault at once, canonical JSON, a hash."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.specs.canonical import canonical, sha256_of


class Document(BaseModel):
    """A frozen record that one stage writes and another reads.

    Unknown keys are refused, so that a hand-edited file with a misspelt key is noticed. Floats are kept at nine significant digits in
    files and in the hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    def from_dict(cls, value: Any, *, path: Path | str | None = None, fix: str | None = None) -> Self:
        """Validates ``value``; ``FedsamError`` names every offending key at once."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise FedsamError(
                f"not a valid {cls.__name__} document",
                path=path,
                found="; ".join(_describe(detail) for detail in error.errors()),
                expected=f"the keys of {cls.__name__} in docs/formats.md",
                fix=fix or "mend or delete these keys, or make the file anew",
            ) from error

    @classmethod
    def load(cls, path: Path, *, fix: str | None = None) -> Self:
        """Reads and validates a file; ``FedsamError`` when missing, broken, or invalid."""
        return cls.from_dict(read_json(path, fix=fix), path=path, fix=fix)


def _describe(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "(document)"
    return f"{where}: {detail['msg']}"
