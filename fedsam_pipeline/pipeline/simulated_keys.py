"""The common key of simulated sites: in a federation of real ones it lies at each of them, and nobody else makes it."""

from collections.abc import Iterable
from pathlib import Path

from fedsam_pipeline.federation.encrypted_sums import KEY_FILE, make_key, require_library, write_key
from fedsam_pipeline.federation.encryption_rules import require_enough_to_encrypt
from fedsam_pipeline.flower.site_worker import SiteSetup


def simulated_key(fold: Path, sites: int, min_sites: int | None) -> Path:
    """Where the key of a run's sites is, or will be.

    Args:
        fold: the run's ``fold_K`` folder.
        sites: of the run.
        min_sites: updates that a round needs; ``None``: all.

    Raises:
        FedsamError: TenSEAL is not installed, or a sum would be of one site alone.
    """
    require_library()
    require_enough_to_encrypt(sites, min_sites)
    return (fold / "sites" / KEY_FILE).absolute()


def make_simulated_keys(sites: Iterable[SiteSetup]) -> None:
    """Makes the key of sites that encrypt, where there is none: nothing of a run that goes on needs the one it had."""
    for path in {site.encryption_key for site in sites} - {None}:
        if path is not None and not path.exists():
            write_key(path, make_key())


def clear_simulated_keys(sites: Iterable[SiteSetup]) -> None:
    """Removes it: a run that begins anew gets another."""
    for site in sites:
        if site.encryption_key is not None:
            site.encryption_key.unlink(missing_ok=True)
