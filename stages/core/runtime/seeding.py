"""Seeds: everything random is drawn from a generator made from (seed, purpose, index)."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed that depends on ``seed`` and on what it is for; equal on every platform."""
    text = "/".join([str(seed), *(str(part) for part in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a numpy generator for one purpose, e.g. ``numpy_generator(seed, "augment", epoch, index)``."""
    return np.random.default_rng(derive_seed(seed, *purpose))


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed Python, numpy and torch, and choose between torch's deterministic algorithms and its fastest ones.

    Where both are the same, as for most of a CPU's, the choice changes nothing.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries we call still use the global generator
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # as cuBLAS asks for, before its first call
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Filling every new tensor with NaN is a debugging aid that costs a pass over memory per operation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch (CPU) for a library that draws from them.

    Their states are restored afterwards: what is drawn inside depends on `seed` alone, and what is drawn later does
    not depend on the block. The generators of GPUs are not touched (`torch.manual_seed` would seed them, too).
    """
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
