"""Where every random draw of training comes from: (seed, round, site, sample index), and nothing else."""

import hashlib

import numpy as np


def sample_generator(seed: int, round_number: int, site: str, index: int) -> np.random.Generator:
    """The generator of one sample. Equal arguments give equal draws on any machine, after any number of restarts."""
    words = hashlib.sha256(site.encode("utf-8")).digest()[:8]
    return np.random.default_rng(np.random.SeedSequence([seed, round_number, index, int.from_bytes(words, "little")]))
