"""The key that the sites of a federation share for encrypted sums: made at one of them, brought to the others, never at the server."""

from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.encrypted_sums import KEY_FILE, SiteCipher, make_key, write_key
from fedsam_pipeline.flower.deployment.kit import load_kit


def add_common_key(folder: Path, given: Path | None) -> Path:
    """Puts the key into a site's folder, for its owner alone to read.

    Args:
        folder: the site's, of a kit.
        given: the file of another site; ``None``: makes a new key, at the first site.

    Returns:
        The key's file.

    Raises:
        FedsamError: the folder is the server's, or has a key; the given file is none; TenSEAL is not installed.
    """
    if load_kit(folder).site is None:
        raise FedsamError(
            "the server must not have the key of the sites' updates", path=folder, expected="a site's folder", fix="run this at a site"
        )
    path = folder / KEY_FILE
    if path.exists():
        raise FedsamError(
            "this site has an encryption key",
            path=path,
            expected="none",
            fix="keep it; for a new one delete it at every site first: all must hold the same",
        )
    if given is None:
        write_key(path, make_key())
    else:
        SiteCipher.load(given)
        write_key(path, given.read_bytes())
    return path
