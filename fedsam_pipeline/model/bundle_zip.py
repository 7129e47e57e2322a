"""A model bundle: trained folds in one zip, checked file by file when it is unpacked (``docs/formats.md``, "Model bundle")."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import atomic_path, json_text, make_folder, parse_json, sha256_file
from fedsam_pipeline.model.plain_zip import PlainZip, open_plain_zip, write_plain_zip
from fedsam_pipeline.specs.base_model import BaseModelSpec
from fedsam_pipeline.specs.bundle_index import INDEX_FILE, INDEX_SCHEMA, BundleIndex, Member

GET_AGAIN = "copy the bundle again, or ask for a new one: fedsam_export_model"
DISTRIBUTION = "fedsam-pipeline"
INDEX_LIMIT = 1 << 22
"""bytes: a bundle of a hundred folds has an index of a tenth of this"""
TEXT_LIMIT = 1 << 26
"""bytes of a JSON or text member: the largest manifest there is has a hundredth of this"""


def licence_text(licence: str) -> bytes:
    """The text of a licence that the registry names.

    Raises:
        FedsamError: the package does not carry it.
    """
    entry = files("fedsam_pipeline.model") / "licences" / f"{licence}.txt"
    if not entry.is_file():
        raise FedsamError("the text of a licence is not in this package", found=licence, fix="install fedsam-pipeline again")
    return entry.read_bytes()


def write_bundle(
    path: Path,
    members: Mapping[str, bytes | Path],
    *,
    dataset_name: str,
    configuration: str,
    run: str,
    base: BaseModelSpec,
    folds: list[str],
) -> BundleIndex:
    """Writes a bundle, atomically, and reads it back. Equal members give equal bytes.

    Args:
        path: the zip.
        members: name in the zip to content, without the index.
        dataset_name, configuration, run: the folders that the folds lay in under results.
        base: the registry's entry of the base model.
        folds: names of the folds.

    Raises:
        FedsamError: the members are not those of a bundle, or the file cannot be written.
    """
    index = BundleIndex.from_dict(
        {
            "made_with": version(DISTRIBUTION),
            "dataset_name": dataset_name,
            "configuration": configuration,
            "run": run,
            "base_model": base.name,
            "base_weights": None if base.weights is None else base.weights.to_dict(),
            "folds": folds,
            "members": [_member(name, members[name]).to_dict() for name in sorted(members)],
        }
    )
    ordered = {INDEX_FILE: json_text(index.to_dict()).encode("utf-8")} | {name: members[name] for name in sorted(members)}
    with atomic_path(path) as temporary:
        write_plain_zip(temporary, ordered)
        with open_bundle(temporary) as written:
            written.verify()
    return index


def _member(name: str, content: bytes | Path) -> Member:
    if isinstance(content, bytes):
        return Member(name=name, num_bytes=len(content), file_sha256=hashlib.sha256(content).hexdigest())
    return Member(name=name, num_bytes=content.stat().st_size, file_sha256=sha256_file(content))


@dataclass(frozen=True)
class BundleZip:
    """An open bundle whose index has been checked against the zip; contents are checked as they are read."""

    index: BundleIndex
    _zip: PlainZip

    def verify(self) -> None:
        """Reads every member to its end.

        Raises:
            FedsamError: one is damaged, or is not what the index says.
        """
        for member in self.index.members:
            for _ in self._checked(member):
                pass

    def extract(self, folder: Path) -> None:
        """Writes all members below ``folder``.

        Raises:
            FedsamError: as ``verify``, or the folder cannot be written to. What was written until then stays: give a temporary folder.
        """
        for member in self.index.members:
            target = folder / member.name
            make_folder(target.parent, wanted=target)
            with atomic_path(target) as temporary, open(temporary, "wb") as out:
                for chunk in self._checked(member):
                    out.write(chunk)

    def _checked(self, member: Member) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for chunk in self._zip.chunks(member.name):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != member.file_sha256:
            raise FedsamError(
                "a file of a bundle fails its hash check",
                path=self._zip.path,
                found=f"{member.name}: SHA-256 {digest.hexdigest()}",
                expected=member.file_sha256,
                fix=GET_AGAIN,
            )


@contextmanager
def open_bundle(path: Path) -> Iterator[BundleZip]:
    """Opens a bundle for reading.

    Raises:
        FedsamError: it is no bundle, not safe to unpack (``open_plain_zip``), of another schema version, or its members are not exactly
            those of its index.
    """
    with open_plain_zip(path, fix=GET_AGAIN) as archive:
        sizes = archive.sizes
        if INDEX_FILE not in sizes:
            raise FedsamError(
                "this zip is no model bundle",
                path=path,
                found=", ".join(sorted(sizes)[:8]) or "an empty zip",
                expected=f"a zip with {INDEX_FILE}, as fedsam_export_model writes it",
                fix="check the name",
            )
        index = _read_index(archive, path)
        stated = {member.name: member.num_bytes for member in index.members}
        faults = [f"{name} missing" for name in sorted(stated.keys() - sizes.keys())]
        faults += [f"{name} additional" for name in sorted(sizes.keys() - stated.keys() - {INDEX_FILE})]
        for name in sorted(stated.keys() & sizes.keys()):
            if stated[name] != sizes[name]:
                faults.append(f"{name}: {sizes[name]:,} bytes, not {stated[name]:,}")
            elif not name.endswith(".safetensors") and sizes[name] > TEXT_LIMIT:
                faults.append(f"{name}: {sizes[name]:,} bytes of text, at most {TEXT_LIMIT:,}")
        if faults:
            raise FedsamError(
                "the members of a bundle are not those of its index",
                path=path,
                found="; ".join(faults[:8]),
                expected=f"the {len(stated)} files that {INDEX_FILE} lists",
                fix=GET_AGAIN,
            )
        yield BundleZip(index, archive)


def _read_index(archive: PlainZip, path: Path) -> BundleIndex:
    """The index; of another schema version it says which, and which version of this package wrote it, before anything else is judged."""
    where = f"{path}, {INDEX_FILE}"
    try:
        values: Any = parse_json(archive.read(INDEX_FILE, limit=INDEX_LIMIT).decode())
    except ValueError as error:
        raise FedsamError("the index of a bundle is no JSON", path=where, found=str(error), fix=GET_AGAIN) from error
    found = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(found, int) and found != INDEX_SCHEMA:
        made_with = ascii(values.get("made_with"))[:40]
        newer = found > INDEX_SCHEMA
        raise FedsamError(
            f"the bundle has {'a newer' if newer else 'an older'} schema version than this version of fedsam-pipeline reads",
            path=where,
            found=f"schema version {found}, made with fedsam-pipeline {made_with}",
            expected=f"schema version {INDEX_SCHEMA}, read by fedsam-pipeline {version(DISTRIBUTION)}",
            fix=f"install fedsam-pipeline {'of that version or newer' if newer else made_with}",
        )
    return BundleIndex.from_dict(values, path=where, fix=GET_AGAIN)
