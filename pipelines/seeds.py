"""Every random draw of a run comes from here, named by what it is for.

A generator is made from (run seed, purpose, indices), never carried along: so a draw does not depend
on what was drawn before it, on how work was split into batches, or on a crash in between.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *indices: int | str) -> np.random.Generator:
    """A numpy generator that is a pure function of its arguments (Philox, counter-based).

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as ``"sampling"``; two purposes never share numbers.
        indices: which draw: step, prompt, sample ...
    """
    text = "\x1f".join([str(seed), purpose, *map(str, indices)])
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
