"""Sums of updates that the adding party cannot read: encrypted at the sites, added by the server, decrypted at a site.

The cryptography is TenSEAL's, on Microsoft SEAL: BFV (Brakerski, CRYPTO 2012; Fan and Vercauteren, 2012), of which only addition is used.
Not CKKS: its decryption is approximate, and who holds a ciphertext and is told what it decrypts to, as our server is told the sum, can
compute the secret key (Li and Micciancio, EUROCRYPT 2021). BFV decrypts exactly, to the whole numbers that were encrypted.

A value x becomes the whole number round(x / STEP). With these parameters a ciphertext's own noise is at most 22 (SEAL's errors are bounded
by 21, and encoding rounds once), decryption is exact up to 2^15, so sums of ``MAX_SITES`` parts are exact whatever is drawn.
Behind its values every part has a 1, so that a sum says of how many parts it is, and parts of different keys do not pass for one.
"""

import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.ciphertext_bytes import VALUES, check_ciphertext
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.files import write_secret

KEY_FILE = "encryption.key"
PLAIN_MODULUS = 17592186028033
"""the largest prime below 2^44 that is 1 modulo 8192, as batching needs"""
COEFFICIENT_BITS = (60, 30)
"""of the primes: ciphertexts are modulo the first, the second is for what is not used here. SEAL takes at most 109 bits in all for 128-bit
security at this degree (HomomorphicEncryption.org standard, 2018)"""
STEP = 2.0**-26
MAX_SITES = 1000
_MAGIC = b"FSE1"
_PREFIX = struct.Struct(">4sI")
_LENGTH = struct.Struct(">I")
_KEY_BYTES = 1 << 20
"""more than a key's file has"""


def require_library() -> None:
    """``FedsamError`` where TenSEAL is not installed."""
    _tenseal()


def make_key() -> bytes:
    """A new secret key with its parameters, which all sites of a federation share and nobody else has."""
    secret: bytes = _new_context().serialize(save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
    return secret


def write_key(path: Path, key: bytes) -> None:
    """Writes a key for its owner alone to read (mode 600).

    Raises:
        FedsamError: it is no key of this version.
    """
    SiteCipher(key, path)
    write_secret(path, key)


class SiteCipher:
    """What a site that has the key can do.

    Args:
        key: as ``make_key`` gave it.
        path: where it is from, for the error.

    Raises:
        FedsamError: it is no key of this version.
    """

    def __init__(self, key: bytes, path: Path | None = None) -> None:
        library = _tenseal()
        try:
            if len(key) > _KEY_BYTES:
                raise ValueError("too long")
            self._context = library.context_from(key, n_threads=1)
            probe = library.bfv_vector(self._context, [1] * VALUES)
            check_ciphertext(probe.serialize())
            if _loaded(_adding_context(), probe.serialize()).size() != VALUES or not self._context.has_secret_key():
                raise ValueError("of other parameters")
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise FedsamError(
                "the encryption key cannot be used",
                path=path,
                found=f"{len(key)} bytes ({type(error).__name__})",
                expected="a secret key of this version, whole",
                fix="put the key that the sites share there again, the same at all of them",
            ) from error

    @classmethod
    def load(cls, path: Path) -> "SiteCipher":
        """The key of a file.

        Raises:
            FedsamError: it cannot be read, or is no key.
        """
        try:
            with open(path, "rb") as stream:
                key = stream.read(_KEY_BYTES + 1)
        except OSError as error:
            raise FedsamError(
                "the encryption key cannot be read", path=path, found=str(error), fix="put the key that the sites share there"
            ) from error
        return cls(key, path)

    def encrypt(self, tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor], weight: float, sites: int) -> bytes:
        """One site's part of a sum: ``weight`` times what its tensors differ from ``reference``, encrypted.

        Args:
            tensors: float32 on the CPU.
            reference: names and shapes as ``tensors``; the same at all sites.
            weight: of the site, not scaled.
            sites: whose parts may come into the sum; each gets that share of the range.

        Raises:
            UpdateRefused: a value is NaN, infinite, or too large for its share of the range.
        """
        if not 1 <= sites <= MAX_SITES:
            raise UpdateRefused(f"a sum of {sites} sites, at most {MAX_SITES} fit")
        moved = [(tensors[name].detach().double() - reference[name].detach().double()).flatten() for name in sorted(tensors)]
        steps = np.rint(torch.cat(moved).numpy() * (weight / STEP))
        most = (PLAIN_MODULUS // 2) // sites
        if not np.isfinite(steps).all():
            raise UpdateRefused("NaN or infinite values cannot be encrypted")
        if np.abs(steps).max(initial=0.0) > most:
            raise UpdateRefused(f"a weighted change of more than {most * STEP:g} does not fit into an encrypted sum of {sites} sites")
        padded = np.zeros(_ciphertexts(len(steps)) * VALUES, np.int64)
        padded[: len(steps)] = steps
        padded[len(steps)] = 1
        library = _tenseal()
        return _packed(len(steps), [library.bfv_vector(self._context, row.tolist()).serialize() for row in padded.reshape(-1, VALUES)])

    def decrypt(self, payload: bytes) -> tuple[NDArray[np.float32], int]:
        """The values of a sum, in the order in which ``encrypt`` took them, and of how many parts it says it is.

        Raises:
            UpdateRefused: it is no sum, or is damaged.
        """
        count, chunks = _unpacked(payload)
        steps = np.concatenate([np.array(_loaded(self._context, chunk).decrypt(), np.int64) for chunk in chunks])
        return (steps[:count] * STEP).astype(np.float32), int(steps[count])


class EncryptedSum:
    """The running sum of parts that arrive, for one who has no key: memory for one sum and one part, however many there are.

    Addition is exact: the sum is the same to the last bit in whatever order the parts come.

    Args:
        count: values that every part must have.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._sum: list[Any] | None = None
        self.parts = 0

    def add(self, payload: bytes) -> None:
        """Takes one part in.

        Raises:
            UpdateRefused: it is no part of this sum; nothing of it was added then.
        """
        count, chunks = _unpacked(payload)
        if count != self._count:
            raise UpdateRefused(f"{count} encrypted values, expected {self._count}")
        context = _adding_context()
        part = [_loaded(context, chunk) for chunk in chunks]
        try:
            self._sum = part if self._sum is None else [one + other for one, other in zip(self._sum, part, strict=True)]
        except (ValueError, RuntimeError) as error:
            raise UpdateRefused(f"an encrypted part cannot be added ({type(error).__name__})") from error
        self.parts += 1

    def payload(self) -> bytes:
        """The sum so far, to be decrypted by one who has the key; of no part, no values."""
        return _packed(self._count, [vector.serialize() for vector in self._sum or []])


def tensors_of(values: NDArray[np.generic], shapes: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, NDArray[np.generic]]:
    """Values as tensors by name.

    Args:
        values: one axis.
        shapes: names, sorted, and shapes.

    Raises:
        UpdateRefused: they are more or fewer.
    """
    sizes = [int(np.prod(shape, dtype=np.int64)) for _, shape in shapes]
    if values.shape != (sum(sizes),):
        raise UpdateRefused(f"an array of shape {values.shape!s:.80}, expected ({sum(sizes)},)")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes, parts, strict=True)}


def _ciphertexts(count: int) -> int:
    """That so many values and the 1 behind them take."""
    return count // VALUES + 1


def _packed(count: int, chunks: Sequence[bytes]) -> bytes:
    return _PREFIX.pack(_MAGIC, count) + b"".join(_LENGTH.pack(len(chunk)) + chunk for chunk in chunks)


def _unpacked(payload: bytes) -> tuple[int, list[bytes]]:
    """Number of values, and the ciphertexts, each of which looks as one must: only then does TenSEAL see it."""
    if len(payload) < _PREFIX.size or payload[: len(_MAGIC)] != _MAGIC:
        raise UpdateRefused(f"{len(payload)} bytes that are no encrypted values of this version")
    count, place = _PREFIX.unpack_from(payload)[1], _PREFIX.size
    chunks = []
    while place < len(payload):
        if len(payload) - place < _LENGTH.size:
            raise UpdateRefused("the encrypted values are cut short")
        end = place + _LENGTH.size + _LENGTH.unpack_from(payload, place)[0]
        chunks.append(payload[place + _LENGTH.size : end])
        check_ciphertext(chunks[-1])
        place = end
    if not chunks or len(chunks) != _ciphertexts(count) or place != len(payload):
        raise UpdateRefused(f"{len(chunks)} ciphertexts for {count} values, or one that is cut short")
    return count, chunks


def _loaded(context: Any, chunk: bytes) -> Any:
    """A ciphertext; SEAL checks that it is one of the context's parameters."""
    try:
        return _tenseal().bfv_vector_from(context, chunk)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise UpdateRefused(f"a ciphertext cannot be read ({type(error).__name__})") from error


@cache
def _adding_context() -> Any:
    """The parameters without any key: they are the same everywhere, so nothing has to come from a site."""
    return _tenseal().context_from(public_parameters(), n_threads=1)


def public_parameters() -> bytes:
    """The parameters, of which nothing is secret, as TenSEAL writes a context without keys."""
    told: bytes = _new_context().serialize(save_public_key=False, save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    return told


def _new_context() -> Any:
    library = _tenseal()
    return library.context(
        library.SCHEME_TYPE.BFV,
        VALUES,
        PLAIN_MODULUS,
        list(COEFFICIENT_BITS),
        encryption_type=library.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )


def _tenseal() -> ModuleType:
    try:
        import tenseal
    except ImportError as error:
        raise FedsamError(
            "encrypted sums need TenSEAL, which is not installed",
            found=str(error),
            expected="TenSEAL in this Python environment, at the server and at every site",
            fix="pip install 'fedsam-pipeline[encryption]', or train without --encrypt",
        ) from error
    library: ModuleType = tenseal
    return library
